//! `postroom user NAME`: what the userdbs answer.

use std::io::{self, Write};
use std::path::Path;

use crate::mailbox::namespace::{Kind, Namespace};

/// Prints uid, gid, groups, home, extra fields and namespaces. Exit 0 found, 67 no such user, 75 cannot tell, 78 wrong config.
pub fn show(path: Option<&Path>, name: &str, out: &mut impl Write) -> io::Result<u8> {
    let config = match super::load(path) {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    match config.delivery.userdbs.find(name) {
        Ok(Some(user)) => {
            let credentials = &user.credentials;
            writeln!(out, "user    {}", user.name)?;
            writeln!(out, "userdb  {}", user.origin)?;
            writeln!(out, "uid     {}", credentials.uid)?;
            writeln!(out, "gid     {}", credentials.gid)?;
            writeln!(out, "groups  {:?}", credentials.groups)?;
            let home = user
                .home
                .as_ref()
                .map_or("none".into(), |home| home.display().to_string());
            writeln!(out, "home    {home}")?;
            for (key, value) in &user.extra {
                writeln!(out, "{key} = {value}")?;
            }
            match config.delivery.namespaces_of(&user) {
                Ok(namespaces) => {
                    for namespace in namespaces.iter().filter(|it| !it.disabled) {
                        namespace_line(namespace, &user.name, out)?;
                    }
                    Ok(0)
                }
                Err(fault) => {
                    writeln!(out, "cannot tell: {fault}")?;
                    Ok(fault.code.exit())
                }
            }
        }
        Ok(None) => {
            writeln!(out, "no such user: {}", name.escape_debug())?;
            Ok(67)
        }
        Err(unavailable) => {
            writeln!(out, "cannot tell: {unavailable}")?;
            Ok(75)
        }
    }
}

fn namespace_line(namespace: &Namespace, user: &str, out: &mut impl Write) -> io::Result<()> {
    let kind = match namespace.kind {
        Kind::Private => "private",
        Kind::Public => "public",
        Kind::Shared => "shared",
    };
    let prefix = namespace.prefix_for(user);
    let (name, place) = (&namespace.name, namespace.location.path.source());
    writeln!(
        out,
        "namespace {name}  ({kind}, prefix {prefix:?}, {place})"
    )
}
