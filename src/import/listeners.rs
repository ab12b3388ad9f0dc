//! Where Dovecot's LMTP server listens.

use super::Import;
use super::block::Block;
use super::users::path_of;

impl Import<'_> {
    /// `listen`, with a line for each socket.
    pub fn listeners(&mut self) {
        let base = self.base_dir();
        let root = self.root;
        let mut listens = Vec::new();
        for service in root.of_kind("service").filter(|it| it.name == "lmtp") {
            let kinds = ["unix_listener", "inet_listener", "fifo_listener"];
            let odd = |it: &&Block| !kinds.contains(&it.kind.as_str());
            for other in service.blocks.iter().filter(odd) {
                let text = format!(
                    "service lmtp / {} ({}): not known to Postroom",
                    other.kind, other.place
                );
                self.out.warn_above(text);
            }
            for listener in service.of_kind("unix_listener") {
                listener.explain();
                listens.extend(unix(listener, &base).map(|it| (it, listener.place.to_string())));
            }
            for listener in service.of_kind("inet_listener") {
                listener.explain();
                listens.extend(inet(listener, root));
            }
        }
        if listens.is_empty() {
            self.out
                .comment("Dovecot says nothing of an own socket for its LMTP server.");
            return self
                .out
                .line("listen = [{ unix = \"/run/postroom/lmtp\" }]");
        }
        let what =
            "The sockets of Dovecot's LMTP server: take them from it, or give Postroom others.";
        self.out.comment(what);
        self.out.line("listen = [");
        for (listen, place) in listens {
            self.out.part(&format!("  {listen},  # {place}"));
        }
        self.out.part("]");
    }

    /// A certificate is for clients over TCP.
    pub fn certificate(&mut self) {
        let root = self.root;
        let has_tcp = root
            .of_kind("service")
            .filter(|it| it.name == "lmtp")
            .flat_map(|it| it.of_kind("inet_listener"))
            .any(|it| it.text("port").is_some_and(|port| port != "0"));
        let keys = [
            ("ssl_server_cert_file", "ssl_cert"),
            ("ssl_server_key_file", "ssl_key"),
        ];
        if !has_tcp {
            return;
        }
        let found = keys.map(|(new, old)| (new, root.get(new).or(root.get(old))));
        for (key, entry) in found {
            if let Some(entry) = entry {
                let path = path_of(entry).to_owned();
                if path.is_empty() {
                    let text = format!(
                        "{}: the path of {key} is hidden: doveconf -P shows it",
                        entry.place
                    );
                    self.out.mend(text);
                }
                self.out.set(key, path, &entry.place);
            }
        }
        if let Some(entry) = root
            .get("ssl_min_protocol")
            .filter(|it| !it.value.is_empty())
        {
            match entry.value.as_str() {
                "TLSv1.2" | "TLSv1.3" => {
                    self.out
                        .set("ssl_min_protocol", entry.value.as_str(), &entry.place);
                }
                "LATEST" => self.out.set("ssl_min_protocol", "TLSv1.3", &entry.place),
                older => {
                    let what = format!("ssl_min_protocol {older} ({})", entry.place);
                    let why = "Postroom speaks TLSv1.2 and TLSv1.3: an older client is sent away";
                    self.out.warn_above(format!("{what}: {why}"));
                    self.out.leave_out(what, why);
                }
            }
        }
        if let Some(entry) = root.get("ssl").filter(|it| !it.value.is_empty()) {
            match entry.value.as_str() {
                "required" => {
                    let origin = format!("{}, which asks no client of LMTP for it", entry.place);
                    self.out.set("ssl", "yes", origin);
                }
                ssl => self.out.set("ssl", ssl, &entry.place),
            }
        }
        if let Some(entry) = root.get("haproxy_trusted_networks") {
            let words = root.words("haproxy_trusted_networks");
            self.out
                .set("haproxy_trusted_networks", words, &entry.place);
        }
    }
}

/// A table of `listen`; none where the socket is turned off.
fn unix(listener: &Block, base: &str) -> Option<String> {
    let mode = listener.text("mode").unwrap_or("0666");
    if mode.trim_start_matches('0').is_empty() {
        return None;
    }
    let path = listener.text("path").unwrap_or(&listener.name);
    let path = match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("{base}/{path}"),
    };
    let mut parts = vec![
        format!("unix = {}", toml::Value::from(path)),
        format!("mode = {}", toml::Value::from(mode)),
    ];
    for key in ["user", "group"] {
        let name = listener.text(key);
        parts.extend(name.map(|name| format!("{key} = {}", toml::Value::from(name))));
    }
    Some(format!("{{ {} }}", parts.join(", ")))
}

/// A table of `listen` for each address, with where it comes from; none for port 0.
fn inet(listener: &Block, root: &Block) -> Vec<(String, String)> {
    let port = listener.text("port").unwrap_or("0");
    if port == "0" {
        return Vec::new();
    }
    let mut addresses = listener.words("address");
    addresses.extend(listener.words("listen"));
    let mut origin = listener.place.to_string();
    if addresses.is_empty()
        && let Some(entry) = root.get("listen")
    {
        addresses = root.words("listen");
        origin = format!("{origin}, {}", entry.place);
    }
    if addresses.is_empty() {
        addresses = vec!["*".into(), "::".into()];
    }
    let shown = |address: String| match address.as_str() {
        "*" => "0.0.0.0".to_owned(),
        it if it.contains(':') && !it.starts_with('[') => format!("[{it}]"),
        _ => address,
    };
    let flags: Vec<String> = ["ssl", "haproxy"]
        .iter()
        .filter(|key| listener.flag(key) == Some(true))
        .map(|key| format!(", {key} = true"))
        .collect();
    let flags = flags.concat();
    addresses
        .into_iter()
        .map(|address| {
            let address = toml::Value::from(format!("{}:{port}", shown(address)));
            (format!("{{ tcp = {address}{flags} }}"), origin.clone())
        })
        .collect()
}
