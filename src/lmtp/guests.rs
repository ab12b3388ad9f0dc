//! How many connections a peer has: one that opens all there may be leaves none to others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The peers that are connected. Those on a unix socket are not told apart.
#[derive(Debug, Clone)]
pub struct Guests {
    most: usize,
    peers: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection of a peer; it ends with this value.
#[derive(Debug)]
pub struct Guest {
    guests: Guests,
    address: IpAddr,
}

impl Guests {
    /// `most`: connections of one address.
    pub fn new(most: usize) -> Guests {
        Guests {
            most,
            peers: Arc::default(),
        }
    }

    /// None: this address has as many as it may.
    pub fn admit(&self, address: IpAddr) -> Option<Guest> {
        let mut peers = self.peers();
        let count = peers.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Guest {
            guests: self.clone(),
            address,
        })
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut peers = self.guests.peers();
        if let Some(count) = peers.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_so_many() {
        let guests = Guests::new(2);
        let [one, other] = ["192.0.2.1", "2001:db8::1"].map(|it| it.parse().unwrap());
        let first = guests.admit(one).unwrap();
        let _second = guests.admit(one).unwrap();
        assert!(guests.admit(one).is_none());
        assert!(guests.admit(other).is_some());
        drop(first);
        assert!(guests.admit(one).is_some());
        assert_eq!(guests.peers().len(), 1);
    }
}
