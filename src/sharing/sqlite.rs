//! The tables of Dovecot's documents in SQLite: `user_shares`, `anyone_shares`, and `group_shares` where groups share too.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};

use super::{Difference, MapError, Share, With};

/// How long another writer may take.
const BUSY: Duration = Duration::from_secs(10);

/// What the documents create; `group_shares` is for rows that they have no table for.
pub const TABLES: &str = "
CREATE TABLE IF NOT EXISTS user_shares (
  from_user varchar(100) NOT NULL,
  to_user varchar(100) NOT NULL,
  dummy char(1) DEFAULT '1',
  PRIMARY KEY (from_user, to_user)
);
CREATE INDEX IF NOT EXISTS to_user ON user_shares (to_user);
CREATE TABLE IF NOT EXISTS anyone_shares (
  from_user varchar(100) NOT NULL,
  dummy char(1) DEFAULT '1',
  PRIMARY KEY (from_user)
);
";

pub fn read(path: &Path) -> Result<BTreeSet<Share>, MapError> {
    let failed = |error| MapError::Sql(path.display().to_string(), error);
    let mut connection = open(path).map_err(failed)?;
    let transaction = connection.transaction().map_err(failed)?;
    rows(&transaction).map_err(failed)
}

/// One transaction; only rows that differ are touched.
pub fn replace(
    path: &Path,
    owners: &BTreeSet<String>,
    wanted: &BTreeSet<Share>,
) -> Result<Difference, MapError> {
    let failed = |error| MapError::Sql(path.display().to_string(), error);
    let mut connection = open(path).map_err(failed)?;
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failed)?;
    let there = rows(&transaction).map_err(failed)?;
    let difference = Difference::between(&there, wanted, owners);
    let change = || -> rusqlite::Result<()> {
        for share in &difference.surplus {
            run(&transaction, share, false)?;
        }
        for share in &difference.missing {
            run(&transaction, share, true)?;
        }
        Ok(())
    };
    change().map_err(failed)?;
    transaction.commit().map_err(failed)?;
    Ok(difference)
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    // Made by whoever set the map up: an empty one of ours would hide a wrong path.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    Ok(connection)
}

fn rows(transaction: &Transaction<'_>) -> rusqlite::Result<BTreeSet<Share>> {
    let mut rows = BTreeSet::new();
    let mut users = transaction.prepare("SELECT from_user, to_user FROM user_shares")?;
    let shares = users.query_map([], |row| {
        Ok(Share {
            from: row.get(0)?,
            with: With::User(row.get(1)?),
        })
    })?;
    for share in shares {
        rows.insert(share?);
    }
    let mut all = transaction.prepare("SELECT from_user FROM anyone_shares")?;
    let shares = all.query_map([], |row| {
        Ok(Share {
            from: row.get(0)?,
            with: With::Anyone,
        })
    })?;
    for share in shares {
        rows.insert(share?);
    }
    if transaction.table_exists(None, "group_shares")? {
        let mut groups = transaction.prepare("SELECT from_user, to_group FROM group_shares")?;
        let shares = groups.query_map([], |row| {
            Ok(Share {
                from: row.get(0)?,
                with: With::Group(row.get(1)?),
            })
        })?;
        for share in shares {
            rows.insert(share?);
        }
    }
    Ok(rows)
}

fn run(transaction: &Transaction<'_>, share: &Share, is_new: bool) -> rusqlite::Result<usize> {
    let from = &share.from;
    match (&share.with, is_new) {
        (With::User(to), true) => transaction.execute(
            "INSERT INTO user_shares (from_user, to_user, dummy) VALUES (?1, ?2, '1')",
            params![from, to],
        ),
        (With::User(to), false) => transaction.execute(
            "DELETE FROM user_shares WHERE from_user = ?1 AND to_user = ?2",
            params![from, to],
        ),
        (With::Anyone, true) => transaction.execute(
            "INSERT INTO anyone_shares (from_user, dummy) VALUES (?1, '1')",
            params![from],
        ),
        (With::Anyone, false) => transaction.execute(
            "DELETE FROM anyone_shares WHERE from_user = ?1",
            params![from],
        ),
        (With::Group(group), true) => transaction.execute(
            "INSERT INTO group_shares (from_user, to_group, dummy) VALUES (?1, ?2, '1')",
            params![from, group],
        ),
        (With::Group(group), false) => transaction.execute(
            "DELETE FROM group_shares WHERE from_user = ?1 AND to_group = ?2",
            params![from, group],
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_touched() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("map.db");
        assert!(read(&path).is_err(), "a map that is not there is an error");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch(TABLES).unwrap();
        connection
            .execute(
                "INSERT INTO user_shares (from_user, to_user) VALUES ('carol', 'x')",
                [],
            )
            .unwrap();
        let owners = BTreeSet::from(["alice".to_owned()]);
        let to = |with: With| Share {
            from: "alice".into(),
            with,
        };
        let wanted = BTreeSet::from([to(With::Anyone), to(With::User("bob".into()))]);
        let first = replace(&path, &owners, &wanted).unwrap();
        assert_eq!((first.missing.len(), first.surplus.len()), (2, 0));
        assert!(replace(&path, &owners, &wanted).unwrap().is_none());
        let fewer = BTreeSet::from([to(With::User("dave".into()))]);
        let second = replace(&path, &owners, &fewer).unwrap();
        assert_eq!((second.missing.len(), second.surplus.len()), (1, 2));
        let rows: Vec<String> = read(&path).unwrap().iter().map(Share::to_string).collect();
        assert_eq!(rows, ["alice -> dave", "carol -> x"]);
        // No table for groups: an error, and nothing half done.
        let group = BTreeSet::from([to(With::Group("g".into())), to(With::Anyone)]);
        assert!(replace(&path, &owners, &group).is_err());
        assert_eq!(read(&path).unwrap().len(), 2);
    }
}
