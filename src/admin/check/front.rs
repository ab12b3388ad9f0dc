//! What the process that talks to clients has to reach, where root starts the server.

use std::io::{self, Write};

use super::Findings;
use crate::config::{Config, Isolation};
use crate::sys::dir::Dir;
use crate::sys::{credentials, process};

impl<W: Write> Findings<'_, W> {
    /// Asked as that user: root sees more.
    pub fn front(&mut self, config: &Config) -> io::Result<()> {
        let workers = &config.workers;
        let is_divided = credentials::is_root() && workers.isolation == Isolation::Process;
        if !is_divided || config.lmtp.listen.is_empty() {
            return Ok(());
        }
        let identity = match workers.front_identity() {
            Ok(identity) => identity,
            Err(error) => {
                let advice = "useradd --system --no-create-home --shell /usr/sbin/nologin postroom";
                return self.warning(&error.to_string(), advice);
            }
        };
        let found = process::ask_child(Some(&identity), |out| {
            problems(config)
                .iter()
                .try_for_each(|it| writeln!(out, "{it}"))
        })?;
        // What root cannot have either has been said already.
        let known = problems(config);
        let found = String::from_utf8_lossy(&found);
        for problem in found
            .lines()
            .filter(|it| !known.iter().any(|known| known == it))
        {
            let user = workers.front_user();
            let advice = format!("let {user:?} have it, or set workers.front_user to who has");
            let what = format!("a server that root starts asks as {user:?}: {problem}");
            self.warning(&what, &advice)?;
        }
        Ok(())
    }
}

fn problems(config: &Config) -> Vec<String> {
    let settings = &config.delivery;
    let userdbs = settings.userdbs.unavailable();
    let userdbs = userdbs.into_iter().map(|it| it.to_string());
    let maps = settings.addresses.unavailable().into_iter();
    let spool = settings.spool_dir.as_ref().and_then(|path| {
        let file = Dir::open(path).and_then(|dir| dir.anonymous_file());
        let error = file.err()?;
        Some(format!("delivery.spool_dir: {}: {error}", path.display()))
    });
    userdbs.chain(maps).chain(spool).collect()
}
