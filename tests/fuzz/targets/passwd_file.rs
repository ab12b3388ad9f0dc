//! A passwd-file: nobody is found who has no line, and who has one is found, or cannot be told.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::user::passwd_file::PasswdFile;

fuzz_target!(|input: (&[u8], &str)| {
    let (bytes, name) = input;
    let file = PasswdFile::new(postroom_fuzz::file("users", bytes));
    let text = String::from_utf8_lossy(bytes);
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    let has_line = |name: &str| {
        whole
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .any(|line| line.split(':').next() == Some(name))
    };
    match file.find(name) {
        Ok(Some(answer)) => {
            assert!(has_line(name));
            assert!(!answer.extra.contains_key("uid") && !answer.extra.contains_key("home"));
        }
        // Half a line may be his.
        Ok(None) => assert!(!has_line(name) && whole == text),
        Err(_) => {}
    }
    for name in file.names().unwrap_or_default() {
        assert!(has_line(&name));
        assert!(!matches!(file.find(&name), Ok(None)), "{name:?}");
    }
});
