//! The floor: what no server can go below, by one thread for each connection. Write, give it its names, sync once: on a journaled
//! ext4 that has bytes and names on the disk. No protocol, no look-up, no lock, no list of UIDs. A file for several recipients is
//! written once.

use std::fs::{self, File};
use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::load::{Load, Measured, Message};
use crate::store::Store;

pub fn run(store: &Store, load: Load) -> io::Result<Measured> {
    let text = Message::text(load.size);
    let (next, waits) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let began = Instant::now();
    thread::scope(|scope| {
        let work = || -> io::Result<()> {
            let mut own = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= load.messages {
                    break;
                }
                own.push(deliver(store, load, number, &text)?);
            }
            waits.lock().expect("no thread panicked").extend(own);
            Ok(())
        };
        let threads: Vec<_> = (0..load.connections).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|it| it.join().expect("no thread panicked"))
    })?;
    let took = began.elapsed();
    let mut waits = waits.into_inner().expect("no thread panicked");
    waits.sort_unstable();
    Ok(Measured {
        deliveries: load.deliveries(),
        took,
        waits,
    })
}

fn deliver(store: &Store, load: Load, number: usize, text: &[u8]) -> io::Result<Duration> {
    let began = Instant::now();
    let first = number * load.recipients;
    let maildir = |user: usize| store.path(&format!("home/u{}/Maildir", user % load.mailboxes));
    let temporary = maildir(first).join(format!("tmp/{number}.floor"));
    let mut file = File::create_new(&temporary)?;
    file.write_all(text)?;
    for user in first..first + load.recipients {
        fs::hard_link(
            &temporary,
            maildir(user).join(format!("new/{number}.{user}.floor")),
        )?;
    }
    file.sync_all()?;
    fs::remove_file(&temporary)?;
    Ok(began.elapsed())
}
