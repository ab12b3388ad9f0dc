//! Those that wait for one mbox: added under one lock, and made sure by one sync.

use std::time::{Duration, Instant};

use super::Addition;
use super::step::{Step, Told, has_seen};
use crate::deliver::{Core, Saved};
use crate::fault::Fault;
use crate::index::Pair;
use crate::mbox::append::{Appended, Message, Open, Sure};
use crate::mbox::text::Uid;

/// Under one lock, at most: all of them are noted in one attribute of the file, which has a block for it.
const MOST: usize = 200;

/// An answer for each, in their order.
pub fn add(core: &Core, batch: Vec<Addition>) -> Vec<Result<Saved, Fault>> {
    let mut results: Vec<_> = batch.iter().map(|_| None).collect();
    let mut rest: Vec<_> = batch.iter().enumerate().collect();
    // Another way to the same file may have other locks, or another index: then each has its turn.
    while let Some(&(_, first)) = rest.first() {
        let is_alike = |(_, it): &(usize, &Addition)| it.is_alike(first);
        let (here, elsewhere): (Vec<_>, Vec<_>) = rest.into_iter().partition(is_alike);
        rest = elsewhere;
        for part in here.chunks(MOST) {
            let additions: Vec<_> = part.iter().map(|(_, it)| *it).collect();
            for ((at, _), result) in part.iter().zip(add_alike(core, &additions)) {
                results[*at] = Some(result);
            }
        }
    }
    results.into_iter().flatten().collect()
}

fn add_alike(core: &Core, batch: &[&Addition]) -> Vec<Result<Saved, Fault>> {
    let heard: Vec<_> = batch.iter().map(|it| it.heard.check()).collect();
    if heard.iter().all(Result::is_err) {
        return heard.into_iter().filter_map(Result::err).map(Err).collect();
    }
    let patience = batch.iter().map(|it| it.heard.left()).max();
    let (first, paths) = (batch[0], &batch[0].plan.target.paths);
    let began = Instant::now();
    let open = first
        .mbox
        .lock(&first.demands, patience.unwrap_or_default(), |size| {
            has_seen(&core.walks, paths, size)
        });
    let mut open = match open {
        Err(fault) => return batch.iter().map(|_| Err(fault.clone())).collect(),
        Ok(open) => open,
    };
    let locked = began.elapsed();
    let identity = open.stat().identity();
    let known = batch.iter().map(|it| it.is_known(identity));
    let mut results: Vec<Option<Result<Saved, Fault>>> = known.collect();
    let is_new = |(at, _): &(usize, &&Addition)| results[*at].is_none();
    let new: Vec<_> = batch.iter().enumerate().filter(is_new).collect();
    let (new_at, new): (Vec<usize>, Vec<&Addition>) =
        new.into_iter().map(|(at, it)| (at, *it)).unzip();
    let added = Batch::begin(core, &mut open, new).add(locked);
    for (at, result) in new_at.into_iter().zip(added) {
        results[at] = Some(result);
    }
    results.into_iter().flatten().collect()
}

/// Messages that are new to an mbox that is locked.
struct Batch<'b, 'm> {
    open: &'b mut Open<'m>,
    /// None where Dovecot is to give the UIDs.
    step: Option<Step>,
    additions: Vec<&'b Addition>,
    remarks: Vec<String>,
}

/// A message that is in the file.
struct Member {
    appended: Appended,
    uid: Option<u32>,
}

impl<'b, 'm> Batch<'b, 'm> {
    fn begin(core: &Core, open: &'b mut Open<'m>, additions: Vec<&'b Addition>) -> Batch<'b, 'm> {
        let mut remarks = Vec::new();
        let step = match additions.first() {
            None => None,
            Some(first) => {
                let found = Step::find(core, &first.plan.target.paths, open);
                found.unwrap_or_else(|why| {
                    remarks.push(format!("no UID yet: {why}"));
                    None
                })
            }
        };
        Batch {
            open,
            step,
            additions,
            remarks,
        }
    }

    fn add(mut self, locked: Duration) -> Vec<Result<Saved, Fault>> {
        let mut results = self.write();
        if results.iter().all(Result::is_err) {
            return results
                .into_iter()
                .filter_map(Result::err)
                .map(Err)
                .collect();
        }
        let began = Instant::now();
        let sure = match self.open.make_sure() {
            Ok(sure) => sure,
            // Those that could not even be written have their own reason.
            Err(fault) => {
                let refused = results
                    .into_iter()
                    .map(|result| Err(result.err().unwrap_or(fault.clone())));
                return refused.collect();
            }
        };
        let synced = began.elapsed();
        if !sure.is_last {
            let why = "no UID yet: somebody has added behind it without a lock";
            self.remarks.push(why.into());
            results
                .iter_mut()
                .flatten()
                .for_each(|member| member.uid = None);
        }
        self.tell(&sure, &results);
        let saved = |(result, addition): (Result<Member, Fault>, &&Addition)| {
            let Member { appended, uid } = result?;
            let plan = &addition.plan;
            let mut remarks: Vec<String> = plan.dropped.iter().cloned().collect();
            remarks.extend(self.remarks.iter().cloned());
            if uid.is_none() && !plan.keywords.is_empty() {
                let why = "Dovecot has not looked at the file since it was last written";
                remarks.push(format!("stored without {}: {why}", plan.keywords));
            }
            Ok(Saved {
                file: format!(
                    "{}@{}",
                    plan.target.paths.mailbox.display(),
                    appended.offset
                ),
                uid,
                size: appended.size,
                mode: sure.stat.mode,
                gid: sure.stat.gid,
                locked,
                synced,
                remarks,
                ..Saved::nothing(plan, sure.stat.identity())
            })
        };
        results
            .into_iter()
            .zip(&self.additions)
            .map(saved)
            .collect()
    }

    /// All at once; where that fails each by itself, so that it costs only those whose fault it is.
    fn write(&mut self) -> Vec<Result<Member, Fault>> {
        let additions = self.additions.clone();
        match self.write_some(&additions, 0) {
            Ok(members) => return members.into_iter().map(Ok).collect(),
            Err(fault) if additions.len() < 2 => return vec![Err(fault)],
            Err(_) => {}
        }
        let mut results = Vec::new();
        // No UID is left out: Dovecot takes those of the file that follow each other.
        let mut stored = 0;
        for addition in additions {
            let heard = addition.heard.check();
            match heard.and_then(|()| self.write_some(&[addition], stored)) {
                Ok(members) => {
                    stored += members.len();
                    results.extend(members.into_iter().map(Ok));
                }
                Err(fault) => results.push(Err(fault)),
            }
        }
        results
    }

    /// Behind so many of the batch.
    fn write_some(&mut self, some: &[&Addition], stored: usize) -> Result<Vec<Member>, Fault> {
        let step = self.step.as_ref();
        let first_uid = step.map(Step::next_uid);
        let uid_of = |place: usize| first_uid?.checked_add(u32::try_from(stored + place).ok()?);
        let message = |(place, it)| message(step, it, uid_of(place));
        let messages: Vec<_> = some.iter().copied().enumerate().map(message).collect();
        let written = self.open.write(&messages)?.into_iter().enumerate();
        let member = |(place, appended)| Member {
            appended,
            uid: uid_of(place),
        };
        Ok(written.map(member).collect())
    }

    fn tell(&mut self, sure: &Sure, results: &[Result<Member, Fault>]) {
        let members = results.iter().zip(&self.additions);
        let told: Vec<_> = members
            .filter_map(|(result, addition)| {
                let member = result.as_ref().ok()?;
                Some(Told {
                    uid: member.uid?,
                    flags: addition.plan.flags,
                    keywords: &addition.plan.keywords,
                    offset: member.appended.offset,
                })
            })
            .collect();
        if let Some(step) = self.step.take()
            && let Err(why) = step.tell(self.open, sure, &told)
        {
            let why = format!("{} is left to Dovecot: {why}", Pair::MAILBOX.log());
            self.remarks.push(why);
        }
    }
}

fn message<'a>(step: Option<&Step>, addition: &'a Addition, uid: Option<u32>) -> Message<'a> {
    let with_uid = step.zip(uid);
    Message {
        from_line: &addition.from_line,
        header: &addition.header,
        body: &addition.message.body,
        flags: addition.plan.flags,
        uid: with_uid.map(|(step, uid)| Uid {
            uid,
            validity: Some(step.validity()),
            keywords: &addition.plan.keywords,
        }),
    }
}
