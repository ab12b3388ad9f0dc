//! The tables of Dovecot's documents in a database: `user_shares`, `anyone_shares`, and `group_shares` where groups share too.

use std::collections::BTreeSet;

use super::{Difference, MapError, Share, With};
use crate::database::{Database, Row, Transaction};

/// What the documents create; both databases take it.
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

/// All rows, as they are at one moment.
pub fn read(database: &Database) -> Result<BTreeSet<Share>, MapError> {
    let mut shares = BTreeSet::new();
    database.transaction(&mut |transaction| {
        shares = rows(transaction)?;
        Ok(())
    })?;
    Ok(shares)
}

/// One transaction; only rows that differ are touched.
pub fn replace(
    database: &Database,
    owners: &BTreeSet<String>,
    wanted: &BTreeSet<Share>,
) -> Result<Difference, MapError> {
    let mut difference = Difference::default();
    database.transaction(&mut |transaction| {
        difference = Difference::between(&rows(transaction)?, wanted, owners);
        for share in &difference.surplus {
            delete(transaction, share)?;
        }
        for share in &difference.missing {
            insert(transaction, share)?;
        }
        Ok(())
    })?;
    Ok(difference)
}

fn rows(transaction: &mut dyn Transaction) -> Result<BTreeSet<Share>, String> {
    let two = |row: Row| match <[Option<String>; 2]>::try_from(row) {
        Ok([Some(from), Some(to)]) => Ok((from, to)),
        _ => Err("a row without its names".to_owned()),
    };
    let mut shares = BTreeSet::new();
    for row in transaction.rows("SELECT from_user, to_user FROM user_shares", &[])? {
        let (from, to) = two(row)?;
        shares.insert(Share {
            from,
            with: With::User(to),
        });
    }
    for row in transaction.rows("SELECT from_user FROM anyone_shares", &[])? {
        let from = row
            .into_iter()
            .next()
            .flatten()
            .ok_or("a row without its name")?;
        shares.insert(Share {
            from,
            with: With::Anyone,
        });
    }
    if transaction.has_table("group_shares")? {
        for row in transaction.rows("SELECT from_user, to_group FROM group_shares", &[])? {
            let (from, group) = two(row)?;
            shares.insert(Share {
                from,
                with: With::Group(group),
            });
        }
    }
    Ok(shares)
}

fn insert(transaction: &mut dyn Transaction, share: &Share) -> Result<(), String> {
    let from = share.from.as_str();
    match &share.with {
        With::User(to) => transaction.execute(
            "INSERT INTO user_shares (from_user, to_user, dummy) VALUES ($1, $2, '1')",
            &[from, to],
        ),
        With::Anyone => transaction.execute(
            "INSERT INTO anyone_shares (from_user, dummy) VALUES ($1, '1')",
            &[from],
        ),
        With::Group(group) => transaction.execute(
            "INSERT INTO group_shares (from_user, to_group, dummy) VALUES ($1, $2, '1')",
            &[from, group],
        ),
    }
}

fn delete(transaction: &mut dyn Transaction, share: &Share) -> Result<(), String> {
    let from = share.from.as_str();
    match &share.with {
        With::User(to) => transaction.execute(
            "DELETE FROM user_shares WHERE from_user = $1 AND to_user = $2",
            &[from, to],
        ),
        With::Anyone => {
            transaction.execute("DELETE FROM anyone_shares WHERE from_user = $1", &[from])
        }
        With::Group(group) => transaction.execute(
            "DELETE FROM group_shares WHERE from_user = $1 AND to_group = $2",
            &[from, group],
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
        let database = Database::Sqlite(path.clone());
        assert!(
            read(&database).is_err(),
            "a map that is not there is an error"
        );
        let connection = rusqlite::Connection::open(&path).unwrap();
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
        let first = replace(&database, &owners, &wanted).unwrap();
        assert_eq!((first.missing.len(), first.surplus.len()), (2, 0));
        assert!(replace(&database, &owners, &wanted).unwrap().is_none());
        let fewer = BTreeSet::from([to(With::User("dave".into()))]);
        let second = replace(&database, &owners, &fewer).unwrap();
        assert_eq!((second.missing.len(), second.surplus.len()), (1, 2));
        let rows: Vec<String> = read(&database)
            .unwrap()
            .iter()
            .map(Share::to_string)
            .collect();
        assert_eq!(
            rows,
            ["carol -> x", "alice -> dave"]
                .map(str::to_owned)
                .into_iter()
                .rev()
                .collect::<Vec<_>>()
        );
        // No table for groups: an error, and nothing half done.
        let group = BTreeSet::from([to(With::Group("g".into())), to(With::Anyone)]);
        assert!(replace(&database, &owners, &group).is_err());
        assert_eq!(read(&database).unwrap().len(), 2);
    }
}
