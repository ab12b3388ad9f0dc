//! Users in a database, by a query in Dovecot's words. A column is a field of that name; NULL is none.

use super::{Answer, Unavailable};
use crate::database::query::Query;
use crate::database::{Database, Rows};
use crate::text::template::Variables;

/// `[[userdb]] sqlite = { path = "…", query = "SELECT uid, gid, home FROM users WHERE name = '%u'" }`, or `postgresql`.
#[derive(Debug)]
pub struct Sql {
    pub database: Database,
    pub query: Query,
    /// Answers all names, as `user` or as `username` and `domain`.
    pub iterate: Option<String>,
}

impl Sql {
    /// As [`Answer::origin`] has it.
    pub fn name(&self) -> String {
        self.database.to_string()
    }

    /// `query`: no row is no such user, a column is a field by its name.
    pub fn find(&self, name: &str, hostname: &str) -> Result<Option<Answer>, Unavailable> {
        let variables = Variables {
            user: name,
            hostname,
            ..Variables::default()
        };
        let parameters = self.query.parameters(&variables);
        let parameters = parameters.map_err(|missing| self.unavailable(missing.to_string()))?;
        // No row has it, and a database may not take it.
        if parameters.iter().any(|it| it.contains('\0')) {
            return Ok(None);
        }
        let parameters: Vec<&str> = parameters.iter().map(String::as_str).collect();
        let found = self.database.rows(&self.query.statement, &parameters);
        let Rows { columns, mut rows } = found.map_err(|error| self.unavailable(error.why))?;
        let row = match (rows.pop(), rows.len()) {
            (None, _) => return Ok(None),
            (Some(row), 0) => row,
            (Some(_), more) => {
                let why = format!("{} rows for {name:?}, and one is right", more + 1);
                return Err(self.unavailable(why));
            }
        };
        let mut answer = Answer::new(name, self.name());
        for (column, value) in columns.iter().zip(row) {
            let Some(value) = value else { continue };
            let set = answer.set(column, &value);
            set.map_err(|why| self.unavailable(why))?;
        }
        Ok(Some(answer))
    }

    /// `iterate_query`: a column `user`, or `username` and perhaps `domain`.
    pub fn names(&self) -> Result<Vec<String>, Unavailable> {
        let Some(query) = &self.iterate else {
            return Err(self.unavailable("it has no iterate_query: name the users".into()));
        };
        let found = self.database.rows(query, &[]);
        let Rows { columns, rows } = found.map_err(|error| self.unavailable(error.why))?;
        let column = |name: &str| columns.iter().position(|it| it.eq_ignore_ascii_case(name));
        let (user, username, domain) = (column("user"), column("username"), column("domain"));
        let name = |row: Vec<Option<String>>| {
            let of = |at: Option<usize>| at.and_then(|at| row.get(at).cloned().flatten());
            match (of(user), of(username), of(domain)) {
                (Some(user), _, _) => Ok(user),
                (None, Some(name), Some(domain)) => Ok(format!("{name}@{domain}")),
                (None, Some(name), None) => Ok(name),
                (None, None, _) => Err(self.unavailable(
                    "iterate_query answers no column user, or username and domain".into(),
                )),
            }
        };
        rows.into_iter().map(name).collect()
    }

    fn unavailable(&self, why: String) -> Unavailable {
        Unavailable {
            userdb: self.name(),
            why,
        }
    }
}
