//! Configuration files: errors point into the text, and nothing panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::config::Config;
use postroom::text::template::{Template, Variables};

fuzz_target!(|text: &str| {
    if let Err(errors) = Config::from_str("fuzz", text) {
        assert!(!errors.problems.is_empty());
        assert!(errors.problems.iter().all(|it| it.place.end <= text.len()));
        let _ = errors.to_string();
    }
    if let Ok(template) = Template::parse(text) {
        let variables = Variables {
            user: "alice@example.org",
            home: Some("/home/alice"),
            ..Variables::default()
        };
        let _ = template.expand(&variables);
    }
});
