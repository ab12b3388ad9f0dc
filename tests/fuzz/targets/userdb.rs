//! What a userdb's server says, what admins write to ask it, and names that a database is asked for: one finds his own row only.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::database::Database;
use postroom::database::query::Query;
use postroom::text::template::Variables;
use postroom::user::dovecot_auth;

fuzz_target!(|text: &str| {
    let _ = dovecot_auth::parse(text, 7);
    let database = Database::Sqlite(postroom_fuzz::file("users.db", b""));
    let filled = database.transaction(&mut |database| {
        database.execute("CREATE TABLE users (name TEXT, home TEXT)", &[])?;
        database.execute("INSERT INTO users VALUES ($1, $1)", &[text])
    });
    filled.unwrap();
    let found = |user: &str| {
        let variables = Variables {
            user,
            ..Variables::default()
        };
        let query = Query::parse("SELECT home FROM users WHERE name = '%{user}'").unwrap();
        let parameters = query.parameters(&variables).unwrap();
        let parameters: Vec<&str> = parameters.iter().map(String::as_str).collect();
        database.rows(&query.statement, &parameters).unwrap().rows
    };
    assert_eq!(found(text), [[Some(text.to_owned())]]);
    assert!(found(&format!("{text}'")).is_empty());
    let Ok(query) = Query::parse(text) else {
        return;
    };
    let of = |user| {
        query.parameters(&Variables {
            user,
            ..Variables::default()
        })
    };
    if let (Ok(one), Ok(two)) = (of("bob"), of("x' OR '1'='1")) {
        assert_eq!(one.len(), two.len());
    }
});
