//! From an address to the mailbox that is wanted, and to what may stand in for it.
//!
//! Asks userdbs; touches no mail. What comes out is plain data: the second half of a delivery may run elsewhere.

mod hand_over;
mod nodes;
mod rights;

use std::path::{Component, Path};

use super::address::{self, Asked};
use super::directory::Directory;
use super::map::Rule;
use super::placement::Node;
use super::quota;
use super::report::Line;
use super::roots::home_of;
use super::route::Route;
use super::settings::{self, Detail, Permissions, Settings};
use super::targets::{By, Target, Targets, Wanted};
use crate::fault::{Code, Fault};
use crate::mailbox::lookup::{self, Found, NotFound};
use crate::mailbox::name::StorageName;
use crate::mailbox::namespace::{Auto, Kind, Namespace, OnDenied, OnMissing};
use crate::mailbox::path::{NoPlace, Paths};
use crate::mailbox::subscriptions::{self, Subscription};
use crate::message::{Flags, Keywords, Recipient, Refusal};
use crate::text::template::{Template, Variables};
use crate::user::User;

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
        subject: subject(settings, recipient, rule.as_ref()),
        authenticated: recipient.authenticated.as_deref(),
        refusal: recipient.refusal.as_ref(),
        recipient,
        by_rule: rule.is_some(),
    };
    let found = lookup::find(&namespaces, &mailbox, &user.name);
    let on_missing = on_missing(settings, by, rule.as_ref(), found.as_ref().ok());
    let on_denied = on_denied(settings, by);
    let wanted = resolver.wanted(found, &mailbox, by, on_missing)?;
    if let Wanted::Elsewhere { places, .. } = &wanted {
        lines.push(of_places(places));
    }
    let wants_inbox = matches!(&wanted, Wanted::Target(target) if target.own_inbox);
    let routed = match wants_inbox && rule.is_none() {
        true => resolver.routed(head, &mut lines)?,
        false => None,
    };
    let (by, wanted, on_missing, on_denied, route) = match routed {
        // Whatever becomes of it, INBOX stands behind it.
        Some((routed, route)) => {
            let (on_missing, on_denied) = (OnMissing::Inbox, OnDenied::Inbox);
            (By::Route, routed, on_missing, on_denied, Some(route))
        }
        None => (by, wanted, on_missing, on_denied, None),
    };
    let mut parents = match (&wanted, on_missing) {
        // That it is missing is not seen here.
        (Wanted::Target(target), OnMissing::Parent) if target.hand_over.is_none() => {
            resolver.parents(&target.mailbox, by)?
        }
        _ => Vec::new(),
    };
    // Mail for an address of a mailbox is not for the user who delivers it.
    let rule_mailbox = rule
        .as_ref()
        .map(|it| address::normalised(&namespaces, &it.mailbox));
    if let Some(own) = &rule_mailbox {
        parents.retain(|parent| !parent.own_inbox || parent.mailbox == *own);
    }
    let inbox = match route.is_none() && (wants_inbox || rule.is_some()) {
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
        rule_mailbox,
        inbox,
        on_missing,
        on_denied,
        flags: recipient.flags,
        keywords: recipient.keywords.clone(),
        route_flags: route.map_or_else(Flags::default, |it| it.flags),
        route_keywords: route.map_or_else(Keywords::default, |it| it.keywords.clone()),
        ignores_quota: recipient.ignore_quota,
        leaves_full: false,
        announced: recipient.announced.filter(|_| head.is_none()),
        lines,
        user,
    })
}

/// Whose rights count: as the address map says, else the server that sent the recipient here, else `acl.subject`.
fn subject(settings: &Settings, recipient: &Recipient, rule: Option<&Rule>) -> settings::Subject {
    if recipient.is_himself {
        return settings::Subject::Recipient;
    }
    let of_errand = || {
        let errand = recipient.errand.as_ref()?;
        errand.subject.as_deref().and_then(settings::Subject::parse)
    };
    let of_rule = rule.and_then(|rule| rule.subject);
    of_rule.or_else(of_errand).unwrap_or(settings.acl.subject)
}

/// What happens where the mailbox is missing.
fn on_missing(
    settings: &Settings,
    by: By,
    rule: Option<&Rule>,
    found: Option<&Found<'_>>,
) -> OnMissing {
    let of_namespace = found.and_then(|found| found.namespace.on_missing);
    match (rule, of_namespace.unwrap_or(settings.on_missing)) {
        // A stranger's word must not fill the queue: the address itself is what stands in.
        (Some(rule), _) if by.is_strangers() && rule.on_missing == OnMissing::Defer => {
            OnMissing::Parent
        }
        (Some(rule), _) => rule.on_missing,
        // Whoever has the INBOX decides what stands in.
        (None, _) if by == By::Errand => OnMissing::Reject,
        (None, OnMissing::Defer) if by.is_strangers() => OnMissing::Inbox,
        (None, asked) => asked,
    }
}

/// What happens where the mailbox must not be used.
fn on_denied(settings: &Settings, by: By) -> OnDenied {
    match settings.on_denied {
        _ if by == By::Errand => OnDenied::Reject,
        OnDenied::Defer if by.is_strangers() => OnDenied::Inbox,
        asked => asked,
    }
}

/// What the report says of mailboxes that other servers have.
fn of_places(places: &[(String, Node)]) -> Line {
    let nodes = places
        .iter()
        .map(|(name, node)| format!("{name} at {node}"));
    Line::ok("node", nodes.collect::<Vec<_>>().join(", else "))
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
    /// What another server, or Dovecot, has answered.
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
        if let Some(refusal) = self.refusal.filter(|it| it.mailbox == mailbox) {
            let (mailbox, why) = (mailbox.to_owned(), refusal.why.clone());
            return Ok(match refusal.is_missing {
                true => Wanted::Missing { mailbox, why },
                false => Wanted::Denied { mailbox, why },
            });
        }
        if by != By::Errand
            && let Some(node) = self.node_of(mailbox, &found)?
        {
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
        let routes = &self.settings.routes;
        let Some(head) = head else {
            if !routes.is_empty() {
                let count = routes.len();
                let text = format!("{count} look at the header: the message decides");
                lines.push(Line::ok("routes", text));
            }
            return Ok(None);
        };
        let Some(route) = routes.iter().find(|route| route.takes(head)) else {
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
            alike_window: namespace
                .duplicate_message_ids
                .unwrap_or_default()
                .as_secs(),
            paths: paths.into(),
        }))
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
}
