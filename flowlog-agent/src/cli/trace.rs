//! `flowlog trace`: what became of single packets, one line at each place.

use std::{collections::BTreeSet, ops::RangeInclusive, process::ExitCode, time::Duration};

use anyhow::Context as _;
use flowlog_kernel::{
    confine::{self, Keep},
    tracer::{LeftOut, Question, Tracer},
};
use flowlog_model::{
    amount::{self, parse_duration},
    interface::NetnsName,
    text::printable,
};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    complete,
    exit::Failure,
    out::{self, say},
};

/// Lines a second at most: each is a line on a terminal, and a KiB of a ring of 128.
const RATE_MAX: u32 = 10_000;
/// How often it is looked whether agent and interfaces are as they were: nobody tells.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// At most as long as one may want to wait for a packet that seldom comes.
const TIMES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  flowlog trace -i tap0 'host 10.0.0.9 and port 22'
  flowlog trace -i tap0 -i tap1 --for 5m --count 20 icmp
  flowlog trace -i eth1 --netns natgw 'net 10.0.0.0/8 and not tcp'")]
pub(super) struct TraceArgs {
    /// Interface to trace; may be repeated, up to eight.
    #[arg(long = "interface", short, value_name = "NAME", required = true, add = complete::interfaces())]
    interfaces: Vec<String>,
    /// Network namespace that the interfaces are in: a name of `ip netns`, or a path.
    #[arg(long, value_name = "NAME")]
    netns: Option<NetnsName>,
    /// How long: 90, 30s, 5m, 1h30m.
    #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = time)]
    time: Duration,
    /// Lines a second at most; what is more is counted.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=i64::from(RATE_MAX)))]
    rate: u32,
    /// End after this many lines.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Which packets, in the words of pcap-filter(7): host, net, port, portrange, proto, src, dst, ip, ip6, tcp, udp, icmp, vlan, and, or, not.
    #[arg(value_name = "EXPRESSION")]
    expression: Vec<String>,
}

fn time(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).map_err(|how| how.to_string())?;
    if TIMES.contains(&time) { Ok(time) } else { Err("use a second at least, and a day at most".to_owned()) }
}

pub(super) fn run(args: TraceArgs) -> anyhow::Result<ExitCode> {
    let TraceArgs { mut interfaces, netns, time, rate, count, expression } = args;
    // Named twice it is meant once.
    let mut named = BTreeSet::new();
    interfaces.retain(|name| named.insert(name.clone()));
    let question = Question { interfaces, netns, expression: expression.join(" "), rate };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before there is anything to end.
        let mut stop = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut tracer = Tracer::start(&question)?;
        // All that it takes from here on are descriptors that it has.
        confine::enter(Keep::default()).and_then(|confined| confined.finish()).context("cannot give up privileges")?;
        let length = amount::duration(i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
        out::note(&format!("tracing {} for {length}", question.interfaces.join(", ")));
        if let Some(why) = tracer.absence() {
            out::note(&format!("{why} on this node: what hooks and verdicts would say is not known"));
        }
        let said = tokio::select! {
            said = watch(&mut tracer, count) => said?,
            () = tokio::time::sleep(time) => 0,
            _ = stop.0.recv() => 0,
            _ = stop.1.recv() => 0,
        };
        let code = end(&mut tracer, count, said)?;
        match tracer.changed() {
            Some(what) => Err(Failure::NotNow(format!("{what}: ended, trace again")).into()),
            None => Ok(code),
        }
    })
}

/// Prints lines as they come; ends when as many as are wanted have been printed, or something is not as it was.
async fn watch(tracer: &mut Tracer, count: Option<u64>) -> anyhow::Result<u64> {
    let wakeups = tracer.wakeups()?;
    let mut said = 0;
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            woken = wakeups.next() => woken?,
            _ = look.tick() => {
                if tracer.changed().is_some() {
                    return Ok(said);
                }
                for (before, now) in tracer.follow_names() {
                    out::note(&format!("interface {before} is called {now} now"));
                }
            }
        }
        for line in tracer.lines() {
            say!("{}", printable(&line))?;
            said += 1;
            if Some(said) == count {
                return Ok(said);
            }
        }
    }
}

/// The lines that have come meanwhile, and what was left out.
fn end(tracer: &mut Tracer, count: Option<u64>, said: u64) -> anyhow::Result<ExitCode> {
    if count.is_none_or(|count| said < count) {
        for line in tracer.lines() {
            say!("{}", printable(&line))?;
        }
    }
    let LeftOut { suppressed, lost, unseen } = tracer.left_out();
    if suppressed > 0 {
        out::note(&format!("{suppressed} lines more than `--rate` allows were left out"));
    }
    if lost > 0 {
        out::note(&format!("{lost} lines were lost: they came faster than they were read"));
    }
    if unseen > 0 {
        out::note(&format!("{unseen} packets died while another one was being looked at, and were not"));
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_of_a_second_to_a_day() {
        for (text, secs) in [("30", 30), ("30s", 30), ("5m", 300), ("1h30m", 5_400), ("24h", 86_400), ("1d", 86_400)] {
            assert_eq!(time(text), Ok(Duration::from_secs(secs)), "{text}");
        }
        for (bad, why) in
            [("0", "a day at most"), ("500ms", "a second at least"), ("25h", "a day"), ("1.5m", "such as")]
        {
            assert!(time(bad).is_err_and(|words| words.contains(why)), "{bad}");
        }
    }
}
