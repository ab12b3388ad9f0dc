//! `postroom share`: the sharing map, and what the ACL files say beside it.

mod seen;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::config::Config;
use crate::sharing::{Difference, Map, Share, SharingMap};
use crate::sys::credentials::{self, Credentials};
use crate::sys::{dir, process};
use seen::{Seen, Unseen};

/// What is asked. Only `Rebuild` writes.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Who shares to whom, as the map has it
    List(Users),
    /// The difference between the map and the ACL files; exit 1 where there is one
    Verify(Users),
    /// Make the map what the ACL files say; only rows that differ are touched
    Rebuild(Users),
}

/// Users, by any name that the userdbs take; one who is no more, by the name that the map has. Anybody else is exit code 67.
#[derive(Debug, clap::Args)]
pub struct Users {
    /// Those whose shares are meant [default: everybody's]
    users: Vec<String>,
}

/// Of so many users it is said why their rows stay.
const MAX_TOLD: usize = 10;

const DIFFERENT: u8 = 1;
const NO_USER: u8 = 67;
const TEMPFAIL: u8 = 75;
const CONFIG: u8 = 78;

/// Exit 0, 1 for a difference, 67 no such user, 75 where something cannot be read or written, 78 wrong config.
pub fn run(path: Option<&Path>, command: &Command, out: &mut impl Write) -> io::Result<u8> {
    let config = match super::load(path) {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let Some(map) = &config.sharing_map else {
        let _ = writeln!(
            io::stderr(),
            "postroom share: there is no [acl_sharing_map]"
        );
        return Ok(CONFIG);
    };
    process::clear_umask();
    let done = match command {
        Command::List(users) => list(&config, map, users, out),
        Command::Verify(users) => verify(&config, map, users, out),
        Command::Rebuild(users) => rebuild_all(&config, map, users, out),
    };
    done.or_else(|Failed(code, why)| {
        let _ = writeln!(io::stderr(), "postroom share: {why}");
        Ok(code)
    })
}

/// Why there is no answer, and the exit code.
pub struct Failed(pub u8, pub String);

/// What a step of `postroom share` comes to.
pub type Answer<T> = Result<T, Failed>;
/// A map, and those of its users who are meant.
type MapOf = (Map, BTreeSet<String>);

fn text(error: impl std::fmt::Display) -> Failed {
    Failed(TEMPFAIL, error.to_string())
}

/// The users that are meant, by the map of their domain: each with the file it is in. Second: whether they are all that
/// there are.
fn users_by_map(config: &Config, map: &SharingMap, users: &Users) -> Answer<(Vec<MapOf>, bool)> {
    let all = users.users.is_empty();
    let names = match all {
        true => config.delivery.userdbs.names().map_err(text)?,
        false => users
            .users
            .iter()
            .map(|name| known(config, map, name))
            .collect::<Answer<_>>()?,
    };
    let mut maps = BTreeMap::<Option<PathBuf>, MapOf>::new();
    for name in names {
        let map = map.of(&name).map_err(text)?;
        let (_, names) = maps
            .entry(map.file().cloned())
            .or_insert((map, BTreeSet::new()));
        names.insert(name);
    }
    Ok((maps.into_values().collect(), all))
}

/// The canonical name of a user who is there, or the name of one who is no more and still in the map.
fn known(config: &Config, map: &SharingMap, name: &str) -> Answer<String> {
    if let Some(user) = config.delivery.userdbs.find(name).map_err(text)? {
        return Ok(user.name);
    }
    let rows = map.of(name).and_then(|map| map.read()).map_err(text)?;
    match rows.iter().any(|share| share.from == name) {
        true => Ok(name.to_owned()),
        false => Err(Failed(NO_USER, format!("no such user: {name:?}"))),
    }
}

fn list(config: &Config, map: &SharingMap, users: &Users, out: &mut impl Write) -> Answer<u8> {
    let (maps, all) = users_by_map(config, map, users)?;
    for (map, names) in maps {
        for share in map.read().map_err(text)? {
            if all || names.contains(&share.from) {
                writeln!(out, "{share}").map_err(text)?;
            }
        }
    }
    Ok(0)
}

fn verify(config: &Config, map: &SharingMap, users: &Users, out: &mut impl Write) -> Answer<u8> {
    let (maps, all) = users_by_map(config, map, users)?;
    let (mut differs, mut is_whole) = (false, true);
    for (map, names) in maps {
        let wanted = Wanted::of(config, &map, names, all)?;
        let difference = Difference::between(&wanted.there, &wanted.shares, &wanted.owners);
        print(&difference, "missing", "surplus", out)?;
        differs |= !difference.is_none();
        is_whole &= wanted.is_whole(all);
    }
    Ok(match (differs, is_whole) {
        (true, _) => DIFFERENT,
        (false, true) => 0,
        (false, false) => TEMPFAIL,
    })
}

fn rebuild_all(
    config: &Config,
    map: &SharingMap,
    users: &Users,
    out: &mut impl Write,
) -> Answer<u8> {
    let (maps, all) = users_by_map(config, map, users)?;
    let mut is_whole = true;
    for (map, names) in maps {
        let wanted = Wanted::of(config, &map, names, all)?;
        let difference = write(&map, &wanted.owners, &wanted.shares)?;
        print(&difference, "added", "removed", out)?;
        is_whole &= wanted.is_whole(all);
    }
    Ok(if is_whole { 0 } else { TEMPFAIL })
}

fn print(
    difference: &Difference,
    missing: &str,
    surplus: &str,
    out: &mut impl Write,
) -> Answer<()> {
    let missing = difference
        .missing
        .iter()
        .map(|share| format!("{missing}: {share}"));
    let surplus = difference
        .surplus
        .iter()
        .map(|share| format!("{surplus}: {share}"));
    let mut lines = missing.chain(surplus);
    lines
        .try_for_each(|line| writeln!(out, "{line}"))
        .map_err(text)
}

/// What one map is to be.
struct Wanted {
    /// Its rows now.
    there: BTreeSet<Share>,
    /// What the ACL files say.
    shares: BTreeSet<Share>,
    /// Whose rows that decides: with all users, also those of users who are no more.
    owners: BTreeSet<String>,
    /// Whose rows stay.
    unseen: Vec<(String, Unseen)>,
}

impl Wanted {
    fn of(config: &Config, map: &Map, names: BTreeSet<String>, all: bool) -> Answer<Wanted> {
        super::check_required_paths(&config.delivery).map_err(text)?;
        let there = map.read().map_err(text)?;
        let mut owners = names.clone();
        if all {
            owners.extend(there.iter().map(|share| share.from.clone()));
        }
        let (mut shares, mut unseen) = (BTreeSet::new(), Vec::new());
        for name in names {
            let seen = seen::of(config, &name)?;
            shares.extend(seen.shares);
            if let Some(why) = seen.unseen {
                owners.remove(&name);
                unseen.push((name, why));
            }
        }
        Ok(Wanted {
            there,
            shares,
            owners,
            unseen,
        })
    }

    /// Says whose rows stay and why; false where that is no one's intention. Of `all` users those whom this server is not to
    /// see are not spoken of.
    fn is_whole(&self, all: bool) -> bool {
        let has_more = |name: &str| {
            let mut more = self.there.difference(&self.shares);
            more.any(|share| share.from == name)
        };
        let is_told = |(name, why): &&(String, Unseen)| match why {
            Unseen::Elsewhere(_) => !all,
            Unseen::NoRoot(_) => has_more(name),
            Unseen::Unreadable(_) => true,
        };
        let told: Vec<_> = self.unseen.iter().filter(is_told).collect();
        for (name, why) in told.iter().take(MAX_TOLD) {
            let why = why.why();
            let _ = writeln!(
                io::stderr(),
                "postroom share: the rows of {name} stay: {why}"
            );
        }
        if let Some(more) = told.len().checked_sub(MAX_TOLD).filter(|more| *more > 0) {
            let _ = writeln!(
                io::stderr(),
                "postroom share: and those of {more} more users"
            );
        }
        told.iter()
            .all(|(_, why)| matches!(why, Unseen::Elsewhere(_)))
    }
}

/// As root, written as whoever owns the map, or else its folder: root's files would be in the way of the others.
fn write(map: &Map, owners: &BTreeSet<String>, wanted: &BTreeSet<Share>) -> Answer<Difference> {
    let file = map.file().filter(|_| credentials::is_root());
    let places = file.into_iter().flat_map(|file| file.ancestors().take(2));
    let owner = places
        .filter_map(|place| dir::nearest_existing(place).ok())
        .map(|(_, stat)| stat)
        .find(|stat| stat.uid != 0);
    let Some(owner) = owner else {
        return map.replace(owners, wanted).map_err(text);
    };
    let identity = Credentials::new(owner.uid, owner.gid, Vec::new());
    let write = |out: &mut io::BufWriter<std::fs::File>| {
        let difference = map
            .replace(owners, wanted)
            .map_err(|error| io::Error::other(error.to_string()))?;
        serde_json::to_writer(out, &(difference.missing, difference.surplus))
            .map_err(io::Error::from)
    };
    let answer = process::ask_child(Some(&identity), write).map_err(text)?;
    let (missing, surplus) = serde_json::from_slice(&answer).map_err(text)?;
    Ok(Difference { missing, surplus })
}

/// After a change of rights in the tree of `user`, who is here: the map follows. Answers why rows stay that may be surplus.
pub fn follow(config: &Config, user: &str) -> Answer<Option<String>> {
    let Some(map) = &config.sharing_map else {
        return Ok(None);
    };
    let map = map.of(user).map_err(text)?;
    let found = config.delivery.userdbs.find(user).map_err(text)?;
    let Seen { shares, unseen } =
        found.map_or_else(Seen::default, |user| seen::here(&config.delivery, &user));
    let mut owners = BTreeSet::from([user.to_owned()]);
    let Some(unseen) = unseen else {
        map.replace(&owners, &shares).map_err(text)?;
        return Ok(None);
    };
    if let Unseen::Unreadable(why) = unseen {
        return Err(text(why));
    }
    let there = map.read().map_err(text)?;
    let stay = !Difference::between(&there, &shares, &owners)
        .surplus
        .is_empty();
    owners.clear();
    map.replace(&owners, &shares).map_err(text)?;
    Ok(stay.then(|| unseen.why().to_owned()))
}
