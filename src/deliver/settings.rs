//! What the core needs to know: built by the config, every default filled in.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::map::AddressMap;
use super::placement::Placement;
use super::quota::Quotas;
use super::route::Route;
use crate::fault::{Code, Fault};
use crate::index::log::LockMethod;
use crate::mailbox::acl::Rights;
use crate::mailbox::acl::sources::Rules;
use crate::mailbox::agent::Agent;
use crate::mailbox::namespace::{Namespace, OnDenied, OnMissing};
use crate::mbox::lock::Locking;
use crate::mbox::text::Quoting;
use crate::message::{Address, Recipient};
use crate::user::{Field, User, Userdbs};

/// How messages are added to an mbox.
#[derive(Debug)]
pub struct Mbox {
    pub locking: Locking,
    pub quoting: Quoting,
}

/// Everything that a delivery goes by. What says no more here is the setting of its name.
#[derive(Debug)]
pub struct Settings {
    pub hostname: String,
    pub userdbs: Userdbs,
    /// All that are not disabled, in the order of the file.
    pub namespaces: Arc<Vec<Namespace>>,
    /// Those of users whose userdb says more of their mailboxes.
    pub own: OwnNamespaces,
    pub acl: Acl,
    /// Mailboxes with an address of their own.
    pub addresses: AddressMap,
    /// For mail whose mailbox is the user's INBOX.
    pub routes: Vec<Route>,
    /// Each character divides user from detail; empty: no details.
    pub recipient_delimiter: String,
    pub detail: Detail,
    pub on_missing: OnMissing,
    pub on_denied: OnDenied,
    /// Below one `mail_path` a delivery makes no more mailboxes: one more is missing.
    pub max_mailboxes: u32,
    /// `permissions`; unset: verified in public and shared namespaces, best effort in private ones.
    pub permissions: Option<Permissions>,
    pub new_mailbox_permissions: NewMailboxPermissions,
    pub recipient_headers: RecipientHeaders,
    pub delivery_address: DeliveryAddress,
    /// `lmtp_add_received_header`
    pub adds_received: bool,
    /// While one of these is missing every delivery is deferred.
    pub required_paths: Vec<PathBuf>,
    /// None: nothing is counted.
    pub quotas: Option<Quotas>,
    /// None: this server has all mailboxes.
    pub placement: Option<Placement>,
    /// What symlinks to mailboxes may lead to; none: [what the config names](Settings::mail_roots).
    pub mail_roots: Option<Vec<PathBuf>>,
    /// Bytes; none: no limit.
    pub message_size: Option<u64>,
    /// `duplicate_window`: how long a message may be sent again and is stored once; zero: each is stored.
    pub duplicate_window: Duration,
    /// `duplicate_db`: where that is remembered; none: in memory.
    pub duplicate_db: Option<PathBuf>,
    /// Bytes that are to stay free in the file system of a mailbox, and of the spool.
    pub min_free_space: u64,
    /// Where bodies too big for memory wait, unlinked. None: the LDA takes the user's home, the server
    /// /var/lib/postroom/spool, then both /var/tmp.
    pub spool_dir: Option<PathBuf>,
    /// Workers can open nothing but mail, where the kernel knows how (`workers.landlock`).
    pub landlock: bool,
    /// [`Settings::places`], once they have been asked for.
    pub places: OnceLock<Vec<PathBuf>>,
    pub mail_fsync: MailFsync,
    /// `lda_mailbox_autosubscribe`: a mailbox that a delivery makes is subscribed to.
    pub autosubscribe: bool,
    /// How Dovecot's index logs are locked, to append to them; none: they are left alone (`index_log`).
    pub index_log: Option<LockMethod>,
    pub mbox: Mbox,
}

impl Settings {
    /// The fixed parts of all places where mail and what belongs to it may lie.
    pub fn places(&self) -> &[PathBuf] {
        self.places.get_or_init(|| self.find_places())
    }

    /// Namespaces whose mailboxes we write: of others nothing is opened.
    fn written(&self) -> impl Iterator<Item = &Namespace> {
        let all = self.namespaces.iter();
        all.filter(|it| it.location.dovecots().is_none())
    }

    /// Whether a delivery may run dovecot-lda: for a namespace of the file, or for one of a userdb.
    pub fn runs_programs(&self) -> bool {
        let mut agents = self.namespaces.iter().map(|it| &it.location.hand_over);
        agents.any(|it| matches!(it, Some(Agent::Lda { .. })))
    }

    fn find_places(&self) -> Vec<PathBuf> {
        let paths = self.written().flat_map(|namespace| {
            let location = &namespace.location;
            let others = [
                &location.inbox_path,
                &location.control_path,
                &location.index_path,
                &location.index_private_path,
            ];
            others.into_iter().flatten().chain([&location.path])
        });
        let fixed = paths.filter_map(|path| path.fixed_part().map(PathBuf::from));
        let mut places: Vec<PathBuf> = fixed
            .chain(self.mail_roots.iter().flatten().cloned())
            .collect();
        places.sort();
        places.dedup_by(|later, first| later.starts_with(first));
        places
    }

    /// The directories that hold the homes of these users, where they lie elsewhere.
    pub fn bases<'a>(&self, users: impl Iterator<Item = &'a User>) -> BTreeSet<PathBuf> {
        let places = self.places();
        let homes = users.filter_map(|user| user.home.as_deref());
        // Not the home itself: it may be mounted when it is first looked at.
        let bases = homes.filter_map(|home| {
            home.parent()
                .filter(|it| it.parent().is_some())
                .or(Some(home))
        });
        let elsewhere = bases.filter(|base| !places.iter().any(|it| base.starts_with(it)));
        elsewhere.map(Path::to_owned).collect()
    }

    /// The namespaces as this user has them.
    pub fn namespaces_of(&self, user: &User) -> Result<Arc<Vec<Namespace>>, Fault> {
        let fields = user.places();
        if fields.is_empty() {
            return Ok(Arc::clone(&self.namespaces));
        }
        self.own.of(&fields).map_err(|why| {
            let doing = format!("use what the userdb says of the mailboxes of {}", user.name);
            Fault::new(Code::CannotTell, doing, why)
        })
    }

    /// Below which directories mailboxes lie that a symlink may lead to: those of `mail_roots`, or the fixed parts of all paths
    /// and the directory that holds the user's home.
    pub fn mail_roots(&self, home: Option<&Path>) -> Vec<PathBuf> {
        if let Some(roots) = &self.mail_roots {
            return roots.clone();
        }
        let paths = self.written().flat_map(|namespace| {
            let location = &namespace.location;
            std::iter::once(&location.path).chain(&location.inbox_path)
        });
        let fixed = paths.filter_map(|path| path.fixed_part().map(PathBuf::from));
        let homes = home
            .and_then(Path::parent)
            .filter(|it| it.parent().is_some());
        fixed.chain(homes.map(Path::to_owned)).collect()
    }
}

/// Makes namespaces from the fields of a userdb; an error says what is wrong with these.
pub type MakeOwn = Box<dyn Fn(&[Field]) -> Result<Vec<Namespace>, String> + Send + Sync>;

/// Namespaces of some users only, by what their userdb says.
pub struct OwnNamespaces {
    make: MakeOwn,
    known: Mutex<HashMap<Vec<Field>, Arc<Vec<Namespace>>>>,
}

/// How many of them are kept.
const KNOWN: usize = 1000;

impl OwnNamespaces {
    /// `make` gets the fields sorted by name, and is asked again for those whose answer was an error or is no longer kept ([`KNOWN`]).
    pub fn new(make: MakeOwn) -> OwnNamespaces {
        OwnNamespaces {
            make,
            known: Mutex::default(),
        }
    }

    fn of(&self, fields: &[Field]) -> Result<Arc<Vec<Namespace>>, String> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(namespaces) = known().get(fields) {
            return Ok(Arc::clone(namespaces));
        }
        let namespaces = Arc::new((self.make)(fields)?);
        let mut known = known();
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert(fields.to_vec(), Arc::clone(&namespaces));
        Ok(namespaces)
    }
}

impl Default for OwnNamespaces {
    fn default() -> OwnNamespaces {
        OwnNamespaces::new(Box::new(|_| Err("there is no configuration".into())))
    }
}

impl fmt::Debug for OwnNamespaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnNamespaces")
    }
}

/// `delivery.detail`: what `alice+Work` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// A mailbox of the user's own namespaces, never one of `\Sent \Drafts \Trash`.
    Private,
    /// Any mailbox that the user can name.
    Mailbox,
    /// Nothing: INBOX.
    Ignore,
}

impl Detail {
    /// As the configuration spells them; `private` where it says nothing.
    pub const WORDS: [(&str, Detail); 3] = [
        ("private", Detail::Private),
        ("mailbox", Detail::Mailbox),
        ("ignore", Detail::Ignore),
    ];
}

/// `delivery.permissions`: what happens when a stored file would not have the planned group and mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Permissions {
    /// It is not stored: 451, with the command that mends it in log and `explain`.
    Verified,
    /// It is stored, and the log line says so.
    BestEffort,
}

impl Permissions {
    /// As the configuration spells them; where it says nothing the kind of the namespace decides ([`Settings::permissions`]).
    pub const WORDS: [(&str, Permissions); 2] = [
        ("verified", Permissions::Verified),
        ("best-effort", Permissions::BestEffort),
    ];
}

/// `delivery.new_mailbox_permissions`: where a new mailbox takes its mode and group from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewMailboxPermissions {
    /// The namespace's root directory: what Dovecot's documents say.
    Root,
    /// The nearest existing parent mailbox: what Dovecot does.
    Parent,
}

impl NewMailboxPermissions {
    /// As the configuration spells them; `root` where it says nothing.
    pub const WORDS: [(&str, NewMailboxPermissions); 2] = [
        ("root", NewMailboxPermissions::Root),
        ("parent", NewMailboxPermissions::Parent),
    ];
}

/// `delivery.recipient_headers`: Delivered-To and the `for` of Received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecipientHeaders {
    /// In every copy.
    Each,
    /// Only in a message for one recipient: copies are the same bytes and can be hard links.
    Single,
}

impl RecipientHeaders {
    /// As the configuration spells them; `each` where it says nothing.
    pub const WORDS: [(&str, RecipientHeaders); 2] = [
        ("each", RecipientHeaders::Each),
        ("single", RecipientHeaders::Single),
    ];
}

/// `lmtp_hdr_delivery_address`, Dovecot's words: the address in Delivered-To and the `for` of Received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryAddress {
    /// That of RCPT.
    Final,
    /// ORCPT, where it was given and is an address; else that of RCPT.
    Original,
    None,
}

impl DeliveryAddress {
    /// As the configuration spells them; `final` where it says nothing.
    pub const WORDS: [(&str, DeliveryAddress); 3] = [
        ("final", DeliveryAddress::Final),
        ("original", DeliveryAddress::Original),
        ("none", DeliveryAddress::None),
    ];
}

impl DeliveryAddress {
    /// What Delivered-To and Received say; none: neither names a recipient.
    pub fn of(self, recipient: &Recipient) -> Option<Address> {
        let original = || Address::parse(recipient.original.as_deref()?).ok();
        match self {
            DeliveryAddress::Final => Some(recipient.address.clone()),
            DeliveryAddress::Original => original().or_else(|| Some(recipient.address.clone())),
            DeliveryAddress::None => None,
        }
    }
}

/// `mail_fsync`, Dovecot's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailFsync {
    Optimized,
    Always,
    /// The promise is void; start, `check` and every log line say so.
    Never,
}

impl MailFsync {
    /// As the configuration spells them; `optimized` where it says nothing.
    pub const WORDS: [(&str, MailFsync); 3] = [
        ("optimized", MailFsync::Optimized),
        ("always", MailFsync::Always),
        ("never", MailFsync::Never),
    ];
}

/// `[acl]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    pub driver: AclDriver,
    pub delivery_right: DeliveryRight,
    pub subject: Subject,
    /// UNIX groups count as `acl_groups` too: Dovecot never counts them.
    pub unix_groups: bool,
    /// Whose behaviour where the two differ.
    pub dovecot: Dovecot,
    /// Whom no entry of a mailbox names has what he has on the INBOX of its tree (not in public namespaces).
    pub defaults_from_inbox: bool,
    /// The files of mailboxes do not count.
    pub globals_only: bool,
    /// Dovecot 2.3's global file or directory.
    pub global_path: Option<PathBuf>,
    /// For every mailbox.
    pub rules: Rules,
}

/// Whose rights count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// The user who gets the message, as in Dovecot.
    Recipient,
    /// The owner of the mailbox.
    Owner,
    /// Nobody in particular: `anyone` entries decide.
    Anonymous,
    /// Whom a trusted peer vouches for; else nobody in particular. Never the envelope sender.
    AuthenticatedSender,
}

impl Subject {
    /// As the configuration, tables of addresses and errands to other servers ([`Errand`](crate::message::Errand)) spell them.
    pub const WORDS: [(&str, Subject); 4] = [
        ("recipient", Subject::Recipient),
        ("owner", Subject::Owner),
        ("anonymous", Subject::Anonymous),
        ("authenticated-sender", Subject::AuthenticatedSender),
    ];

    /// One of [`Subject::WORDS`], in small letters. None: another word.
    pub fn parse(word: &str) -> Option<Subject> {
        let found = Subject::WORDS.iter().find(|(known, _)| *known == word);
        found.map(|(_, subject)| *subject)
    }
}

/// The versions differ in a few ways; each is named where it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dovecot {
    V23,
    V24,
}

/// `acl.driver`, Dovecot's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AclDriver {
    /// `dovecot-acl` files.
    Vfile,
    /// The file system's permissions alone decide.
    None,
}

/// The right that storing needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryRight {
    InsertOrPost,
    Post,
    Insert,
}

impl DeliveryRight {
    /// `rights`: what is left of them when all entries have counted. `lookup` is not needed to store.
    pub fn is_given_by(self, rights: &Rights) -> bool {
        match self {
            DeliveryRight::InsertOrPost => rights.insert() || rights.post(),
            DeliveryRight::Insert => rights.insert(),
            DeliveryRight::Post => rights.post(),
        }
    }
}
