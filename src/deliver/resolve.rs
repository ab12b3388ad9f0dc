//! From an address to the mailbox that is wanted, and to what may stand in for it.
//!
//! Asks userdbs; touches no mail. What comes out is plain data: the second half of a delivery may run elsewhere.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::address::{self, Asked};
use super::directory::Directory;
use super::placement::Node;
use super::quota;
use super::report::Line;
use super::route::Route;
use super::settings::{self, AclDriver, Detail, Dovecot, Permissions, Settings};
use crate::fault::{Code, Fault};
use crate::mailbox::acl::sources::{self, Configured, Rules};
use crate::mailbox::acl::{Sources, store};
use crate::mailbox::agent::{Agent, HandOver};
use crate::mailbox::location::{Driver, Layout, Location};
use crate::mailbox::lookup::{self, Found, NotFound};
use crate::mailbox::name::StorageName;
use crate::mailbox::namespace::{Auto, Kind, Namespace, OnDenied, OnMissing};
use crate::mailbox::path::{NoPlace, Paths};
use crate::mailbox::quota::Quota;
use crate::mailbox::subscriptions::{self, Subscription};
use crate::maildir::create::exists;
use crate::message::{Address, Flags, Keywords, Recipient, Refusal};
use crate::text::template::{Template, Variables};
use crate::user::{Credentials, User};

/// Everything that the second half of a delivery needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Targets {
    /// The recipient as given.
    pub recipient: String,
    /// Whose namespaces, uid and groups deliver.
    pub user: User,
    pub by: By,
    pub wanted: Wanted,
    /// The parents of the wanted mailbox, nearest first, where a parent may take its mail.
    pub parents: Vec<Target>,
    /// Another server has all mailboxes of the user, and decides: nothing of the rest counts.
    pub node: Option<Node>,
    /// Whose rights count.
    pub subject: settings::Subject,
    /// The user's INBOX, where it is not what is wanted anyway.
    pub inbox: Option<Target>,
    pub on_missing: OnMissing,
    pub on_denied: OnDenied,
    /// What the message is to be stored with.
    pub flags: Flags,
    pub keywords: Keywords,
    /// And what a route adds to that in its mailbox, not in what stands in for it.
    pub route_flags: Flags,
    pub route_keywords: Keywords,
    /// Somebody trusted says so.
    pub ignores_quota: bool,
    /// Bytes that the message will have; none: it is not announced, or here already.
    pub announced: Option<u64>,
    /// The decisions so far.
    pub lines: Vec<Line>,
}

/// What named the wanted mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum By {
    /// Nothing: INBOX.
    Default,
    /// `alice+Work@…`: a stranger's word. It must never fill the MTA's queue.
    Detail,
    /// `-m`.
    Flag,
    /// `[[address]]`.
    Map,
    /// The detail of such an address: a child of its mailbox, and a stranger's word again.
    Child,
    /// Another server, for one of its users.
    Errand,
    /// `[[route]]`: it never costs the mail, INBOX stands behind it.
    Route,
}

/// The mailbox that is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Wanted {
    Target(Box<Target>),
    /// No such namespace or no such owner.
    Missing {
        mailbox: String,
        why: String,
    },
    /// A name that is not allowed here.
    Denied {
        mailbox: String,
        why: String,
    },
    /// Other servers have it, and what may stand in for it: the first that takes the message.
    Elsewhere {
        mailbox: String,
        places: Vec<(String, Node)>,
    },
}

/// A mailbox that could take the message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// The full name.
    pub mailbox: String,
    /// The namespace's section name.
    pub namespace: String,
    pub kind: Kind,
    pub driver: Driver,
    pub layout: Layout,
    pub paths: Paths,
    /// Only Dovecot writes it: its way there. Whether it is there, and who may store, Dovecot knows.
    pub hand_over: Option<HandOver>,
    /// The INBOX of this namespace's user or owner.
    pub is_inbox: bool,
    /// The delivering user's own INBOX: always created, never stopped by an ACL.
    pub own_inbox: bool,
    /// Whose mailbox it is, by his canonical name; a public one is nobody's.
    pub owner: Option<String>,
    /// Whose rights count.
    pub subject: Subject,
    /// What says which rights he has; none where no ACL counts.
    pub acl: Option<Sources>,
    /// Configured with `auto`: it counts as there.
    pub is_configured: bool,
    /// Made on demand: `auto = create`, `on_missing = create`, the own INBOX.
    pub create: bool,
    /// Where IMAP clients are told of it once it is made.
    pub subscription: Option<Subscription>,
    pub permissions: Permissions,
    /// What it counts for.
    pub quota: Option<Box<Quota>>,
    /// Seconds in which a second message with the same Message-ID is not stored; 0: it is.
    pub alike_window: u64,
    /// Not one set of control files for all who read it: a keyword's letter would mean something else to each.
    pub control_per_user: bool,
}

/// Whose rights count at a mailbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// None: nobody in particular.
    pub name: Option<String>,
    pub groups: Vec<String>,
    pub is_owner: bool,
}

/// The mailbox for `recipient`, its fallbacks, and the user who delivers. `head`: the start of the message, for header
/// routes; none before there is one.
pub fn resolve(
    settings: &Settings,
    directory: &dyn Directory,
    recipient: &Recipient,
    head: Option<&[u8]>,
) -> Result<Targets, Fault> {
    let Asked {
        user,
        namespaces,
        by,
        mailbox,
        rule,
        mut lines,
    } = address::asked(settings, directory, recipient)?;
    if let Some(placement) = settings.placement.as_ref().filter(|_| by != By::Errand)
        && let Some(node) = placement.of_user(directory, &user)?
    {
        lines.push(Line::ok("node", format!("{node}: it decides")));
        return Ok(Targets::at(node, recipient, user, mailbox, lines));
    }
    let resolver = Resolver {
        settings,
        directory,
        namespaces: &namespaces,
        user: &user,
        subject: match recipient.is_himself {
            true => settings::Subject::Recipient,
            false => rule
                .as_ref()
                .and_then(|rule| rule.subject)
                .or_else(|| {
                    recipient
                        .errand
                        .as_ref()?
                        .subject
                        .as_deref()
                        .and_then(settings::Subject::parse)
                })
                .unwrap_or(settings.acl.subject),
        },
        authenticated: recipient.authenticated.as_deref(),
        refusal: recipient.refusal.as_ref(),
        recipient,
        by_rule: rule.is_some(),
    };
    let found = lookup::find(&namespaces, &mailbox, &user.name);
    let of_namespace = found
        .as_ref()
        .ok()
        .and_then(|found| found.namespace.on_missing);
    let on_missing = match (&rule, of_namespace.unwrap_or(settings.on_missing)) {
        // A stranger's word must not fill the queue: the address itself is what stands in.
        (Some(rule), _) if by.is_strangers() && rule.on_missing == OnMissing::Defer => {
            OnMissing::Parent
        }
        (Some(rule), _) => rule.on_missing,
        // Whoever has the INBOX decides what stands in.
        (None, _) if by == By::Errand => OnMissing::Reject,
        (None, OnMissing::Defer) if by.is_strangers() => OnMissing::Inbox,
        (None, asked) => asked,
    };
    let on_denied = match settings.on_denied {
        _ if by == By::Errand => OnDenied::Reject,
        OnDenied::Defer if by.is_strangers() => OnDenied::Inbox,
        asked => asked,
    };
    let wanted = resolver.wanted(found, &mailbox, by, on_missing)?;
    if let Wanted::Elsewhere { places, .. } = &wanted {
        let nodes: Vec<String> = places
            .iter()
            .map(|(name, node)| format!("{name} at {node}"))
            .collect();
        lines.push(Line::ok("node", nodes.join(", else ")));
    }
    let wants_inbox = matches!(&wanted, Wanted::Target(target) if target.own_inbox);
    if wants_inbox && rule.is_none() && head.is_none() && !settings.routes.is_empty() {
        let count = settings.routes.len();
        lines.push(Line::ok(
            "routes",
            format!("{count} look at the header: the message decides"),
        ));
    }
    if wants_inbox
        && rule.is_none()
        && let Some((routed, route)) = resolver.routed(head, &mut lines)?
    {
        return Ok(Targets {
            recipient: recipient.shown(),
            by: By::Route,
            node: None,
            subject: resolver.subject,
            wanted: routed,
            parents: Vec::new(),
            inbox: Some(resolver.inbox()?),
            on_missing: OnMissing::Inbox,
            on_denied: OnDenied::Inbox,
            flags: recipient.flags,
            keywords: recipient.keywords.clone(),
            route_flags: route.flags,
            route_keywords: route.keywords.clone(),
            ignores_quota: recipient.ignore_quota,
            announced: recipient.announced.filter(|_| head.is_none()),
            lines,
            user,
        });
    }
    let parents = match (&wanted, on_missing) {
        // That it is missing is not seen here.
        (Wanted::Target(target), OnMissing::Parent) if target.hand_over.is_none() => {
            resolver.parents(&target.mailbox, by)?
        }
        _ => Vec::new(),
    };
    // Mail for an address of a mailbox is not for the user who delivers it.
    let inbox = match wants_inbox || rule.is_some() {
        true => None,
        false => Some(resolver.inbox()?),
    };
    Ok(Targets {
        recipient: recipient.shown(),
        by,
        node: None,
        subject: resolver.subject,
        wanted,
        parents,
        inbox,
        on_missing,
        on_denied,
        flags: recipient.flags,
        keywords: recipient.keywords.clone(),
        route_flags: Flags::default(),
        route_keywords: Keywords::default(),
        ignores_quota: recipient.ignore_quota,
        announced: recipient.announced.filter(|_| head.is_none()),
        lines,
        user,
    })
}

/// A mailbox by the name that `user` has for it; no mailbox where no name or owner is like that.
pub fn mailbox_of(
    settings: &Settings,
    user: &str,
    mailbox: &str,
) -> Result<(User, Option<Target>), Fault> {
    let recipient = Recipient {
        mailbox: Some(mailbox.into()),
        ..Recipient::of_user(user)
    };
    let targets = resolve(settings, settings, &recipient, None)?;
    let target = match targets.wanted {
        Wanted::Target(target) => Some(*target),
        Wanted::Missing { .. } | Wanted::Denied { .. } | Wanted::Elsewhere { .. } => None,
    };
    Ok((targets.user, target))
}

/// Where the user's own mailboxes lie, those that only Dovecot writes left out.
pub fn roots_of(settings: &Settings, user: &User) -> Result<Vec<(Paths, Layout)>, Fault> {
    let namespaces = settings.namespaces_of(user)?;
    let roots = own_roots_of(settings, &namespaces, user)?.into_iter();
    let mut roots: Vec<_> = roots
        .map(|(namespace, paths)| (paths, namespace.location.layout))
        .collect();
    roots.dedup();
    Ok(roots)
}

/// His private namespaces, of these, with the place of each; none of those that only Dovecot writes.
pub fn own_roots_of<'a>(
    settings: &Settings,
    namespaces: &'a [Namespace],
    user: &User,
) -> Result<Vec<(&'a Namespace, Paths)>, Fault> {
    let home = home_of(user)?;
    let variables = Variables {
        user: &user.name,
        home: home.as_deref(),
        hostname: &settings.hostname,
        ..Variables::default()
    };
    let own = namespaces.iter();
    let own = own.filter(|it| it.kind == Kind::Private && it.alias_for.is_none());
    let own = own.filter(|it| it.location.dovecots().is_none());
    let mut roots = Vec::new();
    for namespace in own {
        match Paths::of(&namespace.location, &StorageName::Inbox, &variables) {
            Ok(paths) => roots.push((namespace, paths)),
            Err(why) => {
                let doing = format!("find the mailboxes of {}", user.name);
                return Err(Fault::new(Code::CannotTell, doing, format!("{why:?}")));
            }
        }
    }
    Ok(roots)
}

/// The mailboxes that are there below the root of a namespace, as `user` has them; a public one needs none.
pub fn mailboxes_of(
    settings: &Settings,
    namespace: &Namespace,
    user: Option<&User>,
) -> Result<Vec<Paths>, Fault> {
    let failed = |why: String| {
        let doing = format!("find the mailboxes of namespace {}", namespace.name);
        Fault::new(Code::CannotTell, doing, why)
    };
    let home = user.map(home_of).transpose()?.flatten();
    let variables = Variables {
        user: user.map_or("", |user| &user.name),
        home: home.as_deref(),
        hostname: &settings.hostname,
        ..Variables::default()
    };
    // Each user's own flags are not looked at.
    let location = &Location {
        index_private_path: None,
        ..namespace.location.clone()
    };
    if let Some(format) = location.dovecots() {
        return Err(failed(format!("only Dovecot knows them ({format})")));
    }
    if location.driver == Driver::Mbox {
        return Err(failed(
            "its mailboxes are mboxes, which have no files of their own to look at".into(),
        ));
    }
    if user.is_none() && location.uses_user() {
        return Err(failed("its paths need a user".into()));
    }
    let place = |name: &StorageName| {
        Paths::of(location, name, &variables).map_err(|why| failed(format!("{why:?}")))
    };
    let inbox = place(&StorageName::Inbox)?;
    let names = match store::mailboxes(&inbox, location.layout) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found.map_err(|error| failed(error.to_string()))?,
    };
    let separator = location.layout.separator();
    let mut all = Vec::new();
    for (name, _) in names {
        let paths = match name.as_str() {
            "INBOX" => inbox.clone(),
            name => {
                let levels = name.split(separator).map(str::to_owned).collect();
                place(&StorageName::Box(levels))?
            }
        };
        // A root may hold mailboxes and be none. What cannot be looked at is the caller's to report.
        if !matches!(
            exists(&paths.mailbox, location.layout, name == "INBOX"),
            Ok(None)
        ) {
            all.push(paths);
        }
    }
    Ok(all)
}

/// Makes targets for one user.
struct Resolver<'a> {
    settings: &'a Settings,
    directory: &'a dyn Directory,
    /// As the user has them.
    namespaces: &'a [Namespace],
    user: &'a User,
    subject: settings::Subject,
    /// Who sends, as a trusted peer knows for sure.
    authenticated: Option<&'a str>,
    /// What another server has answered.
    refusal: Option<&'a Refusal>,
    recipient: &'a Recipient,
    /// The address map has named the user.
    by_rule: bool,
}

impl Resolver<'_> {
    fn wanted(
        &self,
        found: Result<Found<'_>, NotFound>,
        mailbox: &str,
        by: By,
        on_missing: OnMissing,
    ) -> Result<Wanted, Fault> {
        let missing = |why: String| {
            Ok(Wanted::Missing {
                mailbox: mailbox.into(),
                why,
            })
        };
        let found = match found {
            Ok(found) => found,
            Err(NotFound::NoNamespace) => {
                return missing("no namespace has a prefix of this name".into());
            }
            Err(NotFound::PrefixOnly(namespace)) => {
                return missing(format!("it is the prefix of namespace {namespace}"));
            }
            Err(NotFound::NoOwner(namespace)) => {
                return missing(format!("namespace {namespace} needs a user in the name"));
            }
        };
        if let Some(why) = self.closed_to(by, &found) {
            return Ok(Wanted::Denied {
                mailbox: mailbox.into(),
                why,
            });
        }
        let storage = match StorageName::parse(&found.rest, found.namespace) {
            Ok(storage) => storage,
            Err(bad) if by.is_strangers() || by == By::Route => {
                return Ok(Wanted::Denied {
                    mailbox: mailbox.into(),
                    why: bad.to_string(),
                });
            }
            Err(bad) => {
                return Err(Fault::new(
                    Code::CannotTell,
                    format!("use the mailbox name {mailbox:?}"),
                    bad.to_string(),
                ));
            }
        };
        if by != By::Errand
            && let Some(node) = self.node_of(mailbox, &found)?
        {
            if let Some(refusal) = self.refusal.filter(|it| it.mailbox == mailbox) {
                let (mailbox, why) = (mailbox.to_owned(), refusal.why.clone());
                return Ok(match refusal.is_missing {
                    true => Wanted::Missing { mailbox, why },
                    false => Wanted::Denied { mailbox, why },
                });
            }
            let mut places = vec![(mailbox.to_owned(), node)];
            if on_missing == OnMissing::Parent {
                places.extend(self.parents_elsewhere(mailbox, by)?);
            }
            return Ok(Wanted::Elsewhere {
                mailbox: mailbox.into(),
                places,
            });
        }
        match self.hand_over(mailbox, found.namespace, &storage) {
            Err(fault) if by.is_strangers() || by == By::Route => {
                return Ok(Wanted::Denied {
                    mailbox: mailbox.into(),
                    why: fault.to_string(),
                });
            }
            Ok(Some(_)) if self.by_rule || by == By::Errand => {
                self.check_fallback(mailbox, found.namespace, &storage)?;
            }
            _ => {}
        }
        match self.target(mailbox, &found, &storage, on_missing)? {
            Some(target) => Ok(Wanted::Target(Box::new(target))),
            None => missing(format!(
                "no such owner: {}",
                found.owner.as_deref().unwrap_or("?")
            )),
        }
    }

    /// Why a detail must not name this mailbox (`delivery.detail = "private"`).
    fn closed_to(&self, by: By, found: &Found<'_>) -> Option<String> {
        if !by.is_strangers() || self.settings.detail != Detail::Private {
            return None;
        }
        if found.namespace.kind != Kind::Private && by == By::Child {
            return None;
        }
        if found.namespace.kind != Kind::Private {
            return Some(
                "a detail reaches the user's own namespaces only (delivery.detail = \"private\")"
                    .into(),
            );
        }
        let own_only = |special: &String| {
            ["\\Sent", "\\Drafts", "\\Trash"]
                .iter()
                .any(|it| special.eq_ignore_ascii_case(it))
        };
        let special = found
            .namespace
            .mailboxes
            .iter()
            .find(|block| block.name == found.rest)?;
        let special = special
            .special_use
            .iter()
            .find(|special| own_only(special))?;
        Some(format!(
            "no mail from outside goes to {special} (delivery.detail = \"private\")"
        ))
    }

    /// The mailbox of the first route that the message takes. A route that leads nowhere leaves it where it was.
    fn routed(
        &self,
        head: Option<&[u8]>,
        lines: &mut Vec<Line>,
    ) -> Result<Option<(Wanted, &Route)>, Fault> {
        let mut routes = self.settings.routes.iter();
        let Some(route) = head.and_then(|head| routes.find(|route| route.takes(head))) else {
            return Ok(None);
        };
        let name = match route.mailbox.starts_with('\\') {
            true => self.by_special_use(&route.mailbox),
            false => Some(address::normalised(self.namespaces, &route.mailbox)),
        };
        let Some(name) = name else {
            let text = format!("{}: no mailbox is {}", route.from, route.mailbox);
            lines.push(Line::ok("route", text));
            return Ok(None);
        };
        lines.push(Line::ok(
            "route",
            format!("{}: {} -> {name}", route.from, route.header),
        ));
        let found = lookup::find(self.namespaces, &name, &self.user.name);
        let wanted = self.wanted(found, &name, By::Route, OnMissing::Inbox);
        let wanted = wanted.unwrap_or_else(|fault| Wanted::Missing {
            mailbox: name,
            why: fault.to_string(),
        });
        Ok(Some((wanted, route)))
    }

    /// The full name of the user's own mailbox with this special use.
    fn by_special_use(&self, special_use: &str) -> Option<String> {
        let own = self
            .namespaces
            .iter()
            .filter(|it| it.kind == Kind::Private && it.alias_for.is_none());
        own.flat_map(|namespace| {
            namespace
                .mailboxes
                .iter()
                .map(move |block| (namespace, block))
        })
        .find(|(_, block)| {
            block
                .special_use
                .iter()
                .any(|it| it.eq_ignore_ascii_case(special_use))
        })
        .map(|(namespace, block)| {
            format!("{}{}", namespace.prefix_for(&self.user.name), block.name)
        })
    }

    /// The user's own INBOX.
    fn inbox(&self) -> Result<Target, Fault> {
        let found = lookup::find(self.namespaces, "INBOX", &self.user.name);
        let found =
            found.map_err(|_| Fault::new(Code::Internal, "find INBOX", "no namespace has it"))?;
        let target = self.target("INBOX", &found, &StorageName::Inbox, OnMissing::Inbox)?;
        target.ok_or_else(|| Fault::new(Code::Internal, "find INBOX", "its namespace has no owner"))
    }

    /// The levels above `mailbox` in its namespace that may be named like this, nearest first.
    fn parents(&self, mailbox: &str, by: By) -> Result<Vec<Target>, Fault> {
        let mut parents = Vec::new();
        let mut name = mailbox;
        while let Ok(found) = lookup::find(self.namespaces, name, &self.user.name)
            && let Some((parent, _)) = name.rsplit_once(found.namespace.separator)
            && let Ok(above) = lookup::find(self.namespaces, parent, &self.user.name)
            && above.namespace.name == found.namespace.name
            && let Ok(storage) = StorageName::parse(&above.rest, above.namespace)
        {
            if self.closed_to(by, &above).is_none() && self.node_of(parent, &above)?.is_none() {
                parents.extend(self.target(parent, &above, &storage, OnMissing::Parent)?);
            }
            name = parent;
        }
        Ok(parents)
    }

    /// The server that has this mailbox, where it is not this one.
    fn node_of(&self, mailbox: &str, found: &Found<'_>) -> Result<Option<Node>, Fault> {
        let Some(placement) = &self.settings.placement else {
            return Ok(None);
        };
        match (found.namespace.kind, &found.owner) {
            (Kind::Private, _) => Ok(None),
            (Kind::Public, _) => {
                placement.of_mailbox(self.directory, mailbox, found.namespace.separator)
            }
            (Kind::Shared, None) => Ok(None),
            (Kind::Shared, Some(owner)) => match self.directory.user(owner)? {
                Some(owner) => placement.of_user(self.directory, &owner),
                None => Ok(None),
            },
        }
    }

    /// Those of its parents that other servers have, nearest first.
    fn parents_elsewhere(&self, mailbox: &str, by: By) -> Result<Vec<(String, Node)>, Fault> {
        let mut places = Vec::new();
        let mut name = mailbox;
        while let Ok(found) = lookup::find(self.namespaces, name, &self.user.name)
            && let Some((parent, _)) = name.rsplit_once(found.namespace.separator)
            && let Ok(above) = lookup::find(self.namespaces, parent, &self.user.name)
            && above.namespace.name == found.namespace.name
        {
            if self.closed_to(by, &above).is_none()
                && let Some(node) = self.node_of(parent, &above)?
            {
                places.push((parent.to_owned(), node));
            }
            name = parent;
        }
        Ok(places)
    }

    /// `None`: the namespace's owner does not exist or has no home, so nobody shares this.
    fn target(
        &self,
        mailbox: &str,
        found: &Found<'_>,
        storage: &StorageName,
        on_missing: OnMissing,
    ) -> Result<Option<Target>, Fault> {
        let namespace = found.namespace;
        let owner = match &found.owner {
            Some(owner) => match self.directory.user(owner)? {
                Some(owner) => Some(owner),
                None => return Ok(None),
            },
            None => None,
        };
        let home = home_of(self.user)?;
        let owner_home = owner.as_ref().map(home_of).transpose()?.flatten();
        let variables = Variables {
            user: &self.user.name,
            home: home.as_deref(),
            owner_user: owner.as_ref().map(|owner| owner.name.as_str()),
            owner_home: owner_home.as_deref(),
            hostname: &self.settings.hostname,
            ..Variables::default()
        };
        // `shared/bob` is bob's INBOX, wherever his namespace's root is.
        let whole = namespace.kind == Kind::Shared && found.rest == "INBOX";
        let storage = if whole { &StorageName::Inbox } else { storage };
        let hand_over = self.hand_over(mailbox, namespace, storage)?;
        let is_ours = hand_over.is_none();
        let paths = match Paths::of(&namespace.location, storage, &variables) {
            _ if !is_ours => Paths::unknown(),
            Ok(paths) => paths,
            Err(NoPlace::NoOwnerHome) => return Ok(None),
            Err(NoPlace::NoValue(why) | NoPlace::Bad(why)) => {
                let doing = format!("find the place of {mailbox:?} for {}", self.user.name);
                return Err(Fault::new(Code::CannotTell, doing, why));
            }
        };
        if is_ours {
            self.check_place(&paths)?;
        }
        let own_inbox = namespace.kind == Kind::Private && *storage == StorageName::Inbox;
        let auto = namespace.kind == Kind::Private
            && namespace
                .mailboxes
                .iter()
                .any(|block| block.name == found.rest && block.auto != Auto::No);
        Ok(Some(Target {
            mailbox: mailbox.into(),
            namespace: namespace.name.clone(),
            kind: namespace.kind,
            driver: namespace.location.driver,
            layout: namespace.location.layout,
            hand_over,
            is_inbox: *storage == StorageName::Inbox,
            own_inbox,
            owner: match namespace.kind {
                Kind::Private => Some(self.user.name.clone()),
                Kind::Shared | Kind::Public => owner.as_ref().map(|owner| owner.name.clone()),
            },
            subject: self.subject(namespace.kind, owner.as_ref())?,
            quota: {
                let user = match namespace.kind {
                    Kind::Private => Some(self.user),
                    Kind::Shared | Kind::Public => owner.as_ref(),
                };
                quota::of(self.settings, found, user, &paths)?.map(Box::new)
            },
            acl: match is_ours {
                true => self.sources(found, storage, &paths),
                false => None,
            },
            subscription: match is_ours {
                true => self.subscription(found, storage, &variables),
                false => None,
            },
            is_configured: auto,
            create: own_inbox || auto || on_missing == OnMissing::Create,
            permissions: self.settings.permissions.unwrap_or(match namespace.kind {
                Kind::Private => Permissions::BestEffort,
                Kind::Public | Kind::Shared => Permissions::Verified,
            }),
            control_per_user: namespace.kind != Kind::Private
                && namespace
                    .location
                    .control_path
                    .as_ref()
                    .is_some_and(Template::uses_user),
            alike_window: namespace.duplicate_message_ids.as_secs(),
            paths,
        }))
    }

    /// What Dovecot cannot put into a mailbox it puts into the INBOX of the user who delivers. Nobody reads the mail there that
    /// is for an address of a mailbox, or that another server has passed on.
    fn check_fallback(
        &self,
        mailbox: &str,
        namespace: &Namespace,
        storage: &StorageName,
    ) -> Result<(), Fault> {
        if namespace.kind == Kind::Private && *storage == StorageName::Inbox {
            return Ok(());
        }
        let doing = format!("hand mail for {mailbox:?} over to Dovecot");
        let why = format!(
            "where it cannot store it, it would put it into the INBOX of {}",
            self.user.name
        );
        let advice = "keep a mailbox with an address of its own, or one that other servers send to, in a format that Postroom writes";
        Err(Fault::new(Code::CannotTell, doing, why).with_advice(advice))
    }

    /// The way of a message into a mailbox that only Dovecot writes; none: we write it. A fault: no way names it.
    fn hand_over(
        &self,
        mailbox: &str,
        namespace: &Namespace,
        storage: &StorageName,
    ) -> Result<Option<HandOver>, Fault> {
        let location = &namespace.location;
        let Some(format) = location.dovecots() else {
            return Ok(None);
        };
        let failed = |why: String| {
            let doing = format!("hand mail for {mailbox:?} over to Dovecot");
            Fault::new(Code::CannotTell, doing, why)
        };
        let agent = location.hand_over.clone();
        let agent = agent.ok_or_else(|| failed(format!("{format}, and hand_over is not set")))?;
        let is_inbox = namespace.kind == Kind::Private && *storage == StorageName::Inbox;
        let recipient = match &agent {
            Agent::Lda { .. } => {
                let original = self.recipient.original.clone();
                let original = original.filter(|it| Address::parse(it).is_ok());
                let original = original.unwrap_or_else(|| self.recipient.address.to_string());
                // An address literal ends dovecot-lda with a wrong usage.
                Some(original)
                    .filter(|it| it.is_ascii() && !it.contains("@["))
                    .unwrap_or_default()
            }
            Agent::Lmtp { .. } => {
                let detail = match is_inbox {
                    true => None,
                    false => Some(self.detail_of(mailbox, location).map_err(failed)?),
                };
                self.address_with(detail).map_err(failed)?
            }
        };
        Ok(Some(HandOver { agent, recipient }))
    }

    /// What Dovecot's LMTP server must hear as a detail to put mail into this mailbox: it puts the prefix of INBOX before it.
    fn detail_of<'m>(&self, mailbox: &'m str, location: &Location) -> Result<&'m str, String> {
        if !location.hand_over_detail {
            return Err(
                "over LMTP it puts mail into INBOX, unless it has lmtp_save_to_detail_mailbox (hand_over_detail)".into(),
            );
        }
        let prefix = self.namespaces.iter().find(|it| it.inbox);
        let prefix = prefix.map_or("".into(), |it| it.prefix_for(&self.user.name));
        let detail = mailbox.strip_prefix(prefix.as_ref());
        let detail = detail.filter(|it| !it.is_empty());
        let detail = detail
            .ok_or_else(|| format!("over LMTP only mailboxes below {prefix:?} have a name"))?;
        match detail.is_ascii() {
            true => Ok(detail),
            false => Err("over LMTP only mailboxes in ASCII have a name".into()),
        }
    }

    /// The address that means this user and this detail to Dovecot: as the client gave it, where it is his.
    fn address_with(&self, detail: Option<&str>) -> Result<String, String> {
        let ours = &self.settings.recipient_delimiter;
        let (delimiters, divider) = match ours.chars().next() {
            Some(first) => (ours.as_str(), first),
            None => ("+", '+'),
        };
        let is_given =
            !self.by_rule && self.recipient.user.is_none() && self.recipient.errand.is_none();
        let address = match is_given {
            true => self.recipient.address.split_detail(ours).0,
            false => Address::parse(&self.user.name)
                .map_err(|why| format!("{:?} is no address: {why}", self.user.name))?,
        };
        if address.local.contains(|c| delimiters.contains(c)) {
            return Err(format!("it would read a detail in {}", address.local));
        }
        let local = match detail {
            Some(detail) => format!("{}{divider}{detail}", address.local),
            None => address.local,
        };
        Ok(Address { local, ..address }.to_string())
    }

    /// What a userdb says of places holds below the mail roots only.
    fn check_place(&self, paths: &Paths) -> Result<(), Fault> {
        if self.user.places().is_empty() {
            return Ok(());
        }
        let roots = self.settings.mail_roots(self.user.home.as_deref());
        let places = [&paths.root, &paths.mailbox, &paths.inbox, &paths.control];
        let places = places
            .into_iter()
            .chain(&paths.index)
            .chain(&paths.index_private);
        let is_below = |place: &Path| {
            let climbs = place.components().any(|it| it == Component::ParentDir);
            !climbs && roots.iter().any(|root| place.starts_with(root))
        };
        let Some(place) = places.into_iter().find(|place| !is_below(place)) else {
            return Ok(());
        };
        let doing = format!(
            "use what the userdb says of the mailboxes of {}",
            self.user.name
        );
        let why = format!("{} is not below a mail root", place.display());
        let fault = Fault::new(Code::CannotTell, doing, why);
        Err(fault.with_advice("name the directory in delivery.mail_roots"))
    }

    /// The line of a subscriptions file for this mailbox. Dovecot shows one with `auto = subscribe` without a line.
    fn subscription(
        &self,
        found: &Found<'_>,
        storage: &StorageName,
        variables: &Variables<'_>,
    ) -> Option<Subscription> {
        let is_shown = found.namespace.kind != Kind::Shared
            && found
                .namespace
                .mailboxes
                .iter()
                .any(|block| block.name == found.rest && block.auto == Auto::Subscribe);
        if !self.settings.autosubscribe || is_shown {
            return None;
        }
        let holder = subscriptions::holder(self.namespaces, found.namespace)?;
        if holder.location.dovecots().is_some() {
            return None;
        }
        Some(Subscription {
            name: subscriptions::Name::of(found, storage, holder)?,
            filename: holder.location.subscriptions_filename.clone(),
            paths: Paths::of(&holder.location, &StorageName::Inbox, variables).ok()?,
        })
    }

    fn subject(&self, kind: Kind, owner: Option<&User>) -> Result<Subject, Fault> {
        let nobody = Subject {
            name: None,
            groups: Vec::new(),
            is_owner: false,
        };
        match (self.subject, kind) {
            (settings::Subject::Recipient, _) => {
                let names = ["acl_user", "master_user"];
                let acting = names.iter().find_map(|name| self.user.extra.get(*name));
                let name = acting.unwrap_or(&self.user.name);
                Ok(Subject {
                    name: Some(name.clone()),
                    groups: self.groups(self.user)?,
                    is_owner: kind == Kind::Private && *name == self.user.name,
                })
            }
            (settings::Subject::Owner, Kind::Private | Kind::Shared) => {
                let owner = owner.unwrap_or(self.user);
                Ok(Subject {
                    name: Some(owner.name.clone()),
                    groups: self.groups(owner)?,
                    is_owner: true,
                })
            }
            (settings::Subject::AuthenticatedSender, _) => {
                let Some(name) = self.authenticated else {
                    return Ok(nobody);
                };
                let (name, groups) = match self.directory.user(name)? {
                    Some(user) => (user.name.clone(), self.groups(&user)?),
                    None => (name.to_owned(), Vec::new()),
                };
                Ok(Subject {
                    is_owner: kind == Kind::Private && name == self.user.name,
                    name: Some(name),
                    groups,
                })
            }
            (settings::Subject::Owner | settings::Subject::Anonymous, _) => Ok(nobody),
        }
    }

    /// `acl_groups` of the userdb, and the UNIX groups where they count.
    fn groups(&self, user: &User) -> Result<Vec<String>, Fault> {
        let text = user.extra.get("acl_groups").map_or("", String::as_str);
        // Dovecot 2.3 takes blanks as a part of the names.
        let words: Vec<&str> = match self.settings.acl.dovecot {
            Dovecot::V23 => text.split(',').collect(),
            Dovecot::V24 => text.split([',', ' ', '\t']).collect(),
        };
        let words = words.into_iter().filter(|word| !word.is_empty());
        let mut groups: Vec<String> = words.map(str::to_owned).collect();
        if self.settings.acl.unix_groups {
            let Credentials {
                gid, groups: more, ..
            } = &user.credentials;
            for gid in more.iter().chain([gid]) {
                groups.extend(self.directory.group_name(*gid)?);
            }
        }
        Ok(groups)
    }

    /// What decides about the rights on this mailbox.
    fn sources(&self, found: &Found<'_>, storage: &StorageName, paths: &Paths) -> Option<Sources> {
        let (namespace, acl) = (found.namespace, &self.settings.acl);
        let blocks = namespace.mailboxes.iter();
        let blocks: Vec<_> = blocks
            .filter(|block| sources::matches(&block.name, &found.rest))
            .map(|block| &block.acl)
            .collect();
        let ignored = blocks.iter().find_map(|rules| rules.ignore);
        let ignored = ignored.or(namespace.acl.ignore).or(acl.rules.ignore);
        if acl.driver == AclDriver::None || ignored == Some(true) {
            return None;
        }
        let general = [&acl.rules, &namespace.acl];
        let configured = |rules: &[&Rules]| -> Vec<Configured> {
            rules
                .iter()
                .flat_map(|rules| rules.entries.iter().cloned())
                .collect()
        };
        let own = |directory: &Path| (!acl.globals_only).then(|| directory.to_owned());
        let driver = namespace.location.driver;
        let inbox = match *storage == StorageName::Inbox {
            true => paths.mailbox.clone(),
            false => paths.inbox.clone(),
        };
        // The root's file is the default of its mailboxes, unless it is the one of the INBOX. Dovecot 2.4 takes the root of
        // a public namespace for its INBOX.
        let is_inbox = paths.root == inbox;
        let root_counts = match (namespace.kind, acl.dovecot) {
            (Kind::Public, Dovecot::V23) => true,
            _ => !is_inbox,
        };
        let from_inbox = acl.defaults_from_inbox && namespace.kind != Kind::Public;
        let default = match (from_inbox, root_counts) {
            (true, _) => own(&inbox),
            (false, true) => own(&paths.root),
            (false, false) => None,
        };
        let global = acl.global_path.as_ref();
        let global = global.map(|path| (path.clone(), found.full_name()));
        let default = Sources {
            own: default,
            configured: configured(&general),
            global: global.clone(),
            default: None,
        };
        let all: Vec<&Rules> = general.into_iter().chain(blocks).collect();
        Some(Sources {
            own: own(match driver {
                // A file has nothing below it.
                Driver::Mbox => &paths.control,
                Driver::Maildir | Driver::Sdbox | Driver::Mdbox => &paths.mailbox,
            }),
            configured: configured(&all),
            global,
            default: Some(Box::new(default)),
        })
    }
}

/// The home as text; one that is not UTF-8 cannot be put into a path setting.
fn home_of(user: &User) -> Result<Option<String>, Fault> {
    let text = |home: &PathBuf| {
        home.to_str().map(str::to_owned).ok_or_else(|| {
            Fault::new(
                Code::CannotTell,
                format!("use the home of {}", user.name),
                format!("{home:?} is not UTF-8"),
            )
        })
    };
    user.home.as_ref().map(text).transpose()
}

impl Targets {
    /// The mailbox that is asked for, by its full name.
    pub fn wanted_name(&self) -> &str {
        match &self.wanted {
            Wanted::Target(target) => &target.mailbox,
            Wanted::Missing { mailbox, .. }
            | Wanted::Denied { mailbox, .. }
            | Wanted::Elsewhere { mailbox, .. } => mailbox,
        }
    }

    /// The flags and keywords that the message is to have in `target`.
    pub fn marks_in(&self, target: &Target) -> (Flags, Keywords) {
        match &self.wanted {
            Wanted::Target(wanted) if **wanted == *target => (
                self.flags.with(self.route_flags),
                self.keywords.clone().with(&self.route_keywords),
            ),
            _ => (self.flags, self.keywords.clone()),
        }
    }
}

impl Targets {
    /// Of a user whom another server has.
    fn at(
        node: Node,
        recipient: &Recipient,
        user: User,
        mailbox: String,
        lines: Vec<Line>,
    ) -> Targets {
        Targets {
            recipient: recipient.shown(),
            user,
            by: By::Default,
            wanted: Wanted::Missing {
                mailbox,
                why: format!("{node} has it"),
            },
            parents: Vec::new(),
            node: Some(node),
            subject: settings::Subject::Recipient,
            inbox: None,
            on_missing: OnMissing::Defer,
            on_denied: OnDenied::Defer,
            flags: recipient.flags,
            keywords: recipient.keywords.clone(),
            route_flags: Flags::default(),
            route_keywords: Keywords::default(),
            ignores_quota: recipient.ignore_quota,
            announced: None,
            lines,
        }
    }
}

impl Target {
    /// The nearest mailbox above this one, whose rights a new one inherits. The root is none: where it is the INBOX, that
    /// is above its own children only.
    pub fn parent(&self) -> Option<PathBuf> {
        let (root, parents) = self.paths.above.split_last()?;
        let is_there = |path: &Path| matches!(exists(path, self.layout, false), Ok(Some(_)));
        let is_inbox = |path: &Path| path == root.join(".INBOX") || path == root.join("INBOX");
        let parents = parents.iter().map(|path| match self.kind {
            Kind::Private | Kind::Shared if is_inbox(path) && !is_there(path) => &self.paths.inbox,
            _ => path,
        });
        let mut there = parents.filter(|path| is_there(path));
        there.next().cloned()
    }
}

impl By {
    /// Whether whoever writes an address chose the name: it must never fill the MTA's queue.
    pub fn is_strangers(self) -> bool {
        matches!(self, By::Detail | By::Child)
    }

    pub fn text(self) -> &'static str {
        match self {
            By::Default => "default",
            By::Detail => "the detail of the address",
            By::Flag => "-m",
            By::Map => "the address map",
            By::Child => "the address map and the detail",
            By::Errand => "another server",
            By::Route => "a header route",
        }
    }
}
