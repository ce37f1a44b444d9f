//! IPVS, the kernel's load balancer, which has connections of its own: which addresses it serves, and which target serves a client.
//!
//! It tells by two files alone: its netlink family has no connections (`net/netfilter/ipvs/ip_vs_ctl.c`, `ip_vs_conn.c`).

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use flowlog_model::translation::{Service, Services, Tuple};

/// Services, each with its targets in the lines below it.
const SERVICES: &str = "/proc/thread-self/net/ip_vs";
/// Connections, one a line.
const CONNECTIONS: &str = "/proc/thread-self/net/ip_vs_conn";
/// The protocols that it serves, as it writes them.
const PROTOCOLS: [(&str, u8); 3] = [("TCP", 6), ("UDP", 17), ("SCTP", 132)];

/// Which addresses are served in the namespace we are in: none, if there is no IPVS.
///
/// # Errors
/// If they cannot be read.
pub fn services() -> io::Result<Services> {
    let mut services = Services::default();
    for line in lines(SERVICES)? {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // By a mark that netfilter has given: any address may be one.
            ["FWM", ..] => services.by_mark = true,
            [protocol, at, ..] => services.at.extend(service(protocol, at)),
            _ => {}
        }
    }
    Ok(services)
}

/// For packets of clients with these tuples the same ones with the target's address and port. `None`: no such connection is known.
///
/// # Errors
/// If they cannot be read.
pub fn targets(questions: &[Tuple]) -> io::Result<Vec<Option<Tuple>>> {
    let mut found = vec![None; questions.len()];
    if questions.is_empty() {
        return Ok(found);
    }
    let asked: HashMap<Tuple, usize> = questions.iter().copied().zip(0..).collect();
    for line in lines(CONNECTIONS)? {
        let line = line?;
        let Some((client, target)) = connection(&line) else { continue };
        if let Some(slot) = asked.get(&client).and_then(|n| found.get_mut(*n)) {
            *slot = Some(target);
        }
    }
    Ok(found)
}

fn lines(path: &str) -> io::Result<impl Iterator<Item = io::Result<String>>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        other => Some(other?),
    };
    Ok(file.into_iter().flat_map(|f| BufReader::new(f).lines()))
}

fn protocol(word: &str) -> Option<u8> {
    PROTOCOLS.iter().find_map(|(name, number)| (*name == word).then_some(*number))
}

/// `TCP`, and `0A030001:0050` or `[2001:0db8:0000:0000:0000:0000:0000:0001]:0050`.
fn service(name: &str, at: &str) -> Option<Service> {
    let (host, at_port) = at.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    Some(Service { proto: protocol(name)?, address: address(host)?, port: port(at_port)? })
}

/// `TCP 0A030002 9C40 0A030001 0050 0A020002 0007 ESTABLISHED 899`: client, public address, target.
fn connection(line: &str) -> Option<(Tuple, Tuple)> {
    let mut words = line.split_whitespace();
    let proto = protocol(words.next()?)?;
    let mut end = || Some((address(words.next()?)?, port(words.next()?)?));
    let ((src, sport), (dst, dport), (target, target_port)) = (end()?, end()?, end()?);
    let client = Tuple { src, dst, sport, dport, proto };
    Some((client, Tuple { dst: target, dport: target_port, ..client }))
}

/// An IPv4 address in eight hexadecimal digits, or an IPv6 address as everybody writes it.
fn address(word: &str) -> Option<IpAddr> {
    if word.contains(':') {
        return word.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    let word = u32::from_str_radix(word, 16).ok().filter(|_| word.len() == 8)?;
    Some(Ipv4Addr::from_bits(word).into())
}

fn port(word: &str) -> Option<u16> {
    u16::from_str_radix(word, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(src: &str, dst: &str, sport: u16, dport: u16, proto: u8) -> Tuple {
        let ip = |a: &str| a.parse().expect("an address");
        Tuple { src: ip(src), dst: ip(dst), sport, dport, proto }
    }

    #[test]
    fn lines_of_the_kernel_say_who_serves_whom() {
        // Two lines of `ip_vs_conn_seq_show` of Linux 6.12.
        let client = tuple("10.3.0.2", "10.3.0.1", 40_000, 80, 6);
        let line = "TCP 0A030002 9C40 0A030001 0050 0A020002 0007 ESTABLISHED     899";
        let target = Tuple { dst: "10.2.0.2".parse().expect("an address"), dport: 7, ..client };
        assert_eq!(connection(line), Some((client, target)));
        let line = "UDP fd00:0000:0000:0000:0000:0000:0000:0002 9C40 fd00:0000:0000:0000:0000:0000:0000:0001 0035 fd01:0000:0000:0000:0000:0000:0000:0009 0036 UDP             300";
        let client = tuple("fd00::2", "fd00::1", 40_000, 53, 17);
        let target = Tuple { dst: "fd01::9".parse().expect("an address"), dport: 54, ..client };
        assert_eq!(connection(line), Some((client, target)));
    }

    #[test]
    fn what_is_no_connection_or_service_says_nothing() {
        for line in [
            "",
            "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData",
            "TCP 0A030002 9C40",
            "IP 1",
        ] {
            assert_eq!(connection(line), None, "{line}");
        }
        assert_eq!(service("TCP", "0A030001:0050").map(|s| s.port), Some(80));
        assert_eq!(service("UDP", "[fd00:0000:0000:0000:0000:0000:0000:0001]:0035").map(|s| s.proto), Some(17));
        for (name, at) in
            [("Prot", "LocalAddress:Port"), ("->", "RemoteAddress:Port"), ("->", "0A020002:0007"), ("FWM", "00000001")]
        {
            assert_eq!(service(name, at), None, "{name} {at}");
        }
    }
}
