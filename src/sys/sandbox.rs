//! Landlock: a process that can open nothing but the directories it needs, whatever its uid may (landlock(7)).

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus,
};

use super::dir;

/// What the name service and time zones need, for reading.
const READ: [&str; 5] = ["/etc", "/usr", "/lib", "/lib64", "/run/systemd/userdb"];

/// Where a process has been restricted to.
#[derive(Debug, Default)]
pub struct Sandbox {
    /// Each with its device and inode at that time.
    roots: Vec<(PathBuf, Option<(u64, u64)>)>,
    pub level: Level,
    /// A root that is missing with all of its parents: nothing could be closed.
    pub missing: Option<PathBuf>,
}

/// How much of a restriction the kernel enforces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Level {
    Full,
    /// An older kernel, which knows some of it.
    Partial,
    #[default]
    None,
}

/// Restricts this thread, and those that it starts, to `roots`, and `readable` for reading. In place of a root that is not there yet,
/// to the nearest of its parents. Best effort: a kernel without it leaves the process as it is, and so does a root without parents.
pub fn restrict(roots: &[PathBuf], readable: &[PathBuf]) -> io::Result<Sandbox> {
    let known = |path: &PathBuf| (path.clone(), identity(path));
    let mut sandbox = Sandbox {
        roots: roots.iter().map(known).collect(),
        level: Level::None,
        missing: None,
    };
    let mut opened = Vec::new();
    for root in roots {
        match dir::nearest_existing(root) {
            // Once it is there this is another place.
            Ok((parent, _)) if parent.parent().is_none() && parent != *root => {
                sandbox.missing = Some(root.clone());
                return Ok(sandbox);
            }
            Ok((nearest, _)) => opened.push(nearest),
            Err(_) => opened.push(root.clone()),
        }
    }
    let (all, read) = (AccessFs::from_all(ABI::V3), AccessFs::from_read(ABI::V3));
    // The first version forbids every rename between directories, and that is how mail is delivered.
    let second = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::Refer);
    let Ok(rules) = second else {
        return Ok(Sandbox::default());
    };
    let mut rules = rules
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    let readable = READ
        .iter()
        .map(Path::new)
        .chain(readable.iter().map(PathBuf::as_path));
    let roots = opened.iter().map(|it| (it.as_path(), all));
    for (path, access) in roots.chain(readable.map(|it| (it, read))) {
        let Ok(opened) = PathFd::new(path) else {
            continue;
        };
        rules = rules
            .add_rule(PathBeneath::new(opened, access))
            .map_err(io::Error::other)?;
    }
    let status = rules.restrict_self().map_err(io::Error::other)?;
    sandbox.level = match status.ruleset {
        RulesetStatus::FullyEnforced => Level::Full,
        RulesetStatus::PartiallyEnforced => Level::Partial,
        RulesetStatus::NotEnforced => Level::None,
    };
    Ok(sandbox)
}

impl Sandbox {
    /// What this kernel can do: tried by a thread that ends with it.
    pub fn of_this_kernel() -> Level {
        let tried = std::thread::spawn(|| restrict(&["/".into()], &[]));
        match tried.join() {
            Ok(Ok(sandbox)) => sandbox.level,
            _ => Level::None,
        }
    }

    /// False: something has been mounted over a root, or another one has taken its place, which is closed to this process; or a root
    /// that was missing is there, and a new process can be restricted to it.
    pub fn is_current(&self) -> bool {
        let is_same = |(path, then): &(PathBuf, _)| identity(path) == *then;
        self.roots.iter().all(is_same)
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    dir::stat(path).ok().map(|stat| stat.identity())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// In a thread of its own: it is for good.
    #[test]
    fn nothing_outside() {
        std::thread::spawn(|| {
            let root = tempfile::tempdir().unwrap();
            let (inside, outside) = (root.path().join("in"), root.path().join("out"));
            fs::create_dir(&inside).unwrap();
            fs::create_dir(&outside).unwrap();
            fs::write(outside.join("x"), "x").unwrap();
            let gone = restrict(&["/nowhere/at/all".into()], &[]).unwrap();
            assert_eq!(gone.level, Level::None);
            assert_eq!(gone.missing, Some("/nowhere/at/all".into()));
            assert!(gone.is_current() && fs::read(outside.join("x")).is_ok());
            let sandbox = restrict(std::slice::from_ref(&inside), &[]).unwrap();
            if sandbox.level == Level::None {
                return;
            }
            fs::create_dir_all(inside.join("a/tmp")).unwrap();
            fs::create_dir_all(inside.join("a/new")).unwrap();
            fs::write(inside.join("a/tmp/x"), "x").unwrap();
            fs::rename(inside.join("a/tmp/x"), inside.join("a/new/x")).unwrap();
            fs::hard_link(inside.join("a/new/x"), inside.join("a/tmp/y")).unwrap();
            assert!(fs::read(outside.join("x")).is_err());
            assert!(fs::write(outside.join("y"), "y").is_err());
            assert!(fs::metadata("/etc/passwd").is_ok() && fs::read("/etc/passwd").is_ok());
            assert!(sandbox.is_current());
            fs::rename(&inside, root.path().join("other")).unwrap_err();
        })
        .join()
        .unwrap();
    }

    /// Its nearest parent is what stays open, and as soon as it is there another process is better.
    #[test]
    fn a_root_that_is_not_there_yet() {
        if Sandbox::of_this_kernel() == Level::None {
            return;
        }
        std::thread::spawn(|| {
            let root = tempfile::tempdir().unwrap();
            let (parent, outside) = (root.path().join("store"), root.path().join("out"));
            fs::create_dir(&parent).unwrap();
            fs::write(&outside, "x").unwrap();
            let late = parent.join("control/alice");
            let sandbox = restrict(std::slice::from_ref(&late), &[]).unwrap();
            assert!(fs::read(&outside).is_err());
            assert!(sandbox.is_current());
            fs::create_dir_all(&late).unwrap();
            fs::write(late.join("x"), "x").unwrap();
            assert!(!sandbox.is_current());
        })
        .join()
        .unwrap();
    }
}
