//! What a process and all below it have used, out of /proc.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::Duration;

use crate::failed;

/// What the kernel counts processor time in, towards programs, on every Linux.
const TICKS_PER_SECOND: u64 = 100;

#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// User and system, of those too that have ended and been waited for.
    pub cpu: Duration,
    /// The most memory that each of them ever had, summed, in KiB. What they share counts for each.
    pub peak: u64,
}

#[derive(Debug)]
struct Stat {
    parent: u32,
    ticks: u64,
}

/// The use of `pid` and its descendants up to now.
pub fn usage(pid: u32) -> io::Result<Usage> {
    let all: HashMap<u32, Stat> = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        // It may have ended since.
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .collect();
    if !all.contains_key(&pid) {
        return Err(io::Error::other(format!("there is no process {pid}")));
    }
    let mut usage = Usage::default();
    for (&one, stat) in all.iter().filter(|(one, _)| is_below(**one, pid, &all)) {
        usage.cpu += Duration::from_millis(stat.ticks * 1000 / TICKS_PER_SECOND);
        usage.peak += peak(one).unwrap_or(0);
    }
    Ok(usage)
}

/// Processor time of this process.
pub fn own() -> io::Result<Duration> {
    let text = fs::read_to_string("/proc/self/stat").map_err(failed("/proc/self/stat"))?;
    let ticks: u64 = fields(&text).map_or(0, |fields| fields[11..13].iter().sum());
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Processor time of the children of this process that have ended.
pub fn children() -> io::Result<Duration> {
    let text = fs::read_to_string("/proc/self/stat").map_err(failed("/proc/self/stat"))?;
    let ticks: u64 = fields(&text).map_or(0, |fields| fields[13..15].iter().sum());
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

fn is_below(pid: u32, root: u32, all: &HashMap<u32, Stat>) -> bool {
    let mut pid = pid;
    while pid != root {
        match all.get(&pid) {
            Some(stat) => pid = stat.parent,
            None => return false,
        }
    }
    true
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = fields(&text)?;
    // utime, stime, cutime, cstime
    Some(Stat {
        parent: u32::try_from(fields[1]).ok()?,
        ticks: fields[11..15].iter().sum(),
    })
}

/// From the state on: the name before it may hold anything. What is no number, or below zero, is 0.
fn fields(stat: &str) -> Option<Vec<u64>> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<u64> = rest
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    (fields.len() > 15).then_some(fields)
}

fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}
