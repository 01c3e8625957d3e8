//! How often an address may show a wrong token.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::problem::{Code, Problem};

/// The time in which wrong tokens are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses kept. When there are more, those of all count together: somebody has many.
const MAX_ADDRESSES: usize = 4096;

/// Stands for all addresses beyond those.
const MANY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::BROADCAST);

/// Wrong tokens by address.
pub(crate) struct Guesses {
    max: u32,
    counted: Mutex<HashMap<IpAddr, (Instant, u32)>>,
}

impl Guesses {
    pub(crate) fn new(max: u32) -> Self {
        Self { max, counted: Mutex::default() }
    }

    /// Refuses an address that has shown too many, whatever it shows now.
    pub(crate) fn allow(&self, client: IpAddr) -> Result<(), Problem> {
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let too_many = [of_network(client), MANY].iter().find_map(|key| {
            let (since, n) = counted.get(key)?;
            let left = WINDOW.saturating_sub(since.elapsed());
            (*n >= self.max && !left.is_zero()).then_some(left)
        });
        let Some(left) = too_many else { return Ok(()) };
        Err(Problem::new(Code::TooManyRequests, "this address has shown too many wrong tokens")
            .retry_after(left.as_secs() + 1))
    }

    /// Counts a wrong token.
    pub(crate) fn wrong(&self, client: IpAddr) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.len() >= MAX_ADDRESSES {
            counted.retain(|_, (since, _)| since.elapsed() < WINDOW);
        }
        let full = counted.len() >= MAX_ADDRESSES && !counted.contains_key(&of_network(client));
        let key = if full { MANY } else { of_network(client) };
        let (since, n) = counted.entry(key).or_insert((Instant::now(), 0));
        if since.elapsed() >= WINDOW {
            (*since, *n) = (Instant::now(), 0);
        }
        *n += 1;
    }
}

/// Who has an IPv6 address has all of its /64.
fn of_network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => IpAddr::from((address.to_bits() >> 64 << 64).to_be_bytes()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_guesses_waits_and_others_do_not() {
        let guesses = Guesses::new(3);
        let (one, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for _ in 0..3 {
            guesses.allow(one).unwrap();
            guesses.wrong(one);
        }
        assert_eq!(guesses.allow(one).unwrap_err().code(), Code::TooManyRequests);
        guesses.allow(other).unwrap();
        let (one, beside) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        (0..3).for_each(|_| guesses.wrong(one));
        assert!(guesses.allow(beside).is_err(), "its holder has the whole network");
    }
}
