//! What a userdb's server says, and what admins write to ask it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::database::query::Query;
use postroom::text::template::Variables;
use postroom::user::dovecot_auth;

fuzz_target!(|text: &str| {
    let _ = dovecot_auth::parse(text, 7);
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
