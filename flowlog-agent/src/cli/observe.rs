//! `flowlog observe`: live flows, with the habits of `hubble observe`.

use std::{io::IsTerminal as _, ops::ControlFlow, process::ExitCode, time::Duration};

use clap::{ArgAction, ArgMatches, Args, FromArgMatches, ValueEnum};
use flowlog_model::{
    amount::parse_duration,
    live::{FlowEvent, FlowLine, filter::NOT},
    text::printable,
};

use super::{client::SocketArgs, complete, out};

/// Which flows are meant.
#[derive(Args)]
#[command(next_help_heading = "Which flows")]
pub(super) struct FilterArgs {
    /// What became of the packets. This and the following may be repeated: any of the values will do.
    #[arg(long, value_name = "VERDICT", value_parser = ["accepted", "rejected", "lost"])]
    verdict: Vec<String>,
    /// Source or destination: an address or a network.
    #[arg(long, value_name = "CIDR")]
    ip: Vec<String>,
    /// Source: an address or a network.
    #[arg(long, value_name = "CIDR")]
    src: Vec<String>,
    /// Destination: an address or a network.
    #[arg(long, value_name = "CIDR")]
    dst: Vec<String>,
    /// Source or destination port.
    #[arg(long, value_name = "PORT")]
    port: Vec<String>,
    /// IP protocol: a name or a number.
    #[arg(long, value_name = "PROTOCOL")]
    proto: Vec<String>,
    /// As the interface's owner sees it.
    #[arg(long, value_name = "DIRECTION", value_parser = ["ingress", "egress"])]
    direction: Vec<String>,
    /// Interface: its name on the node, or its id.
    #[arg(long, short, value_name = "NAME", add = complete::interfaces())]
    interface: Vec<String>,
    /// Name of the flow log.
    #[arg(long, value_name = "NAME", add = complete::captured())]
    flow_log: Vec<String>,
    /// Drop reason: the kernel's name.
    #[arg(long, value_name = "NAME")]
    reason: Vec<String>,
    /// The condition that follows must not hold.
    #[arg(long, action = ArgAction::Append, num_args = 0, default_missing_value = "true")]
    not: Vec<bool>,
}

/// Conditions in the form of a query, with `--not` in front of those it was given in front of.
pub(super) struct Filter(Vec<(String, String)>);

impl FromArgMatches for Filter {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut nots: Vec<usize> = matches.indices_of("not").into_iter().flatten().collect();
        let mut pairs = Vec::new();
        for key in flowlog_model::live::filter::KEYS {
            let values = matches.get_many::<String>(key).into_iter().flatten();
            for (value, at) in values.zip(matches.indices_of(key).into_iter().flatten()) {
                // A flag and its value count one each.
                let flag = at - 1;
                let negated = nots.iter().position(|not| not + 1 == flag).map(|found| nots.swap_remove(found));
                let not = if negated.is_some() { NOT } else { "" };
                pairs.push((format!("{not}{key}"), value.clone()));
            }
        }
        if nots.is_empty() {
            Ok(Self(pairs))
        } else {
            let words = "`--not` goes in front of the condition that must not hold: `--not --port 22`\n";
            Err(clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, words))
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Filter {
    fn augment_args(command: clap::Command) -> clap::Command {
        FilterArgs::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        FilterArgs::augment_args_for_update(command)
    }
}

impl Filter {
    /// A path with these conditions, and others.
    pub(super) fn path(self, resource: &str, others: Vec<(String, String)>) -> String {
        let base = format!("{resource}?");
        let end = base.len();
        let mut query = form_urlencoded::Serializer::for_suffix(base, end);
        query.extend_pairs(others).extend_pairs(self.0);
        query.finish()
    }
}

/// How a flow is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LineForm {
    /// A sentence each.
    Compact,
    /// Columns.
    Table,
    /// As the API has it: one object a line.
    Json,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  flowlog observe -f --verdict rejected
  flowlog observe --last 20 --not --port 22
  flowlog observe --since 5m --ip 10.0.0.0/8 --interface tap0 -o json")]
pub(super) struct ObserveArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Show flows as they come, until Ctrl-C.
    #[arg(long, short)]
    follow: bool,
    /// Begin with so many flows of the open windows, those with the latest packets.
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// Begin with the flows of the open windows that had a packet in so much time: 90, 30s, 5m, 1h30m.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    since: Option<Duration>,
    /// How a flow is shown.
    #[arg(long, short, default_value = "compact")]
    output: LineForm,
    #[command(flatten)]
    filter: Filter,
}

pub(super) fn run(args: ObserveArgs) -> anyhow::Result<ExitCode> {
    let ObserveArgs { socket, follow, last, since, output, filter } = args;
    let mut others = vec![("follow".to_owned(), follow.to_string())];
    others.extend(last.map(|n| ("last".to_owned(), n.to_string())));
    others.extend(since.map(|time| ("since".to_owned(), in_query(time))));
    let path = filter.path("flows", others);
    let mut lost = 0;
    let mut is_headed = output != LineForm::Table;
    let ended = socket.client().stream(&path, |line| {
        // Not before the agent has answered: an error has no columns.
        if !is_headed {
            out::text(&(heading() + "\n"))?;
            is_headed = true;
        }
        match serde_json::from_str(line) {
            Ok(FlowEvent::Lost { lost_lines }) => lost = lost_lines,
            Ok(FlowEvent::Windows { windows_since, left_out }) => note_windows(windows_since.as_deref(), left_out),
            Ok(FlowEvent::Flow(flow)) if output != LineForm::Json => out::text(&show(&flow, output))?,
            // What a later version says as well is for programs.
            _ => {}
        }
        if output == LineForm::Json {
            out::text(&format!("{line}\n"))?;
        }
        Ok(ControlFlow::Continue(()))
    });
    if lost > 0 || follow && std::io::stderr().is_terminal() {
        out::note(&format!("{lost} lines were lost: they came faster than they could be shown"));
    }
    ended.map(|()| ExitCode::SUCCESS)
}

/// A length of time as a query has it.
pub(super) fn in_query(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}

/// Says how far back flows go: on standard error, so that it is in nobody's table.
fn note_windows(since: Option<&str>, left_out: u64) {
    if std::io::stderr().is_terminal() {
        let words = match since {
            Some(since) => format!("open windows begin at {since} at the latest; earlier flows are in objects"),
            None => "no interface is captured that this could show".to_owned(),
        };
        out::note(&words);
    }
    if left_out > 0 {
        out::note(&format!("{left_out} flows more are left out"));
    }
}

fn heading() -> String {
    format!(
        "{:<15} {:<14} {:<10} {:<7} {:<6} {:<30} {:<30} {:>8} {:>11} {}",
        "TIME", "FLOW LOG", "INTERFACE", "DIR", "ACTION", "SOURCE", "DESTINATION", "PACKETS", "BYTES", "REASON"
    )
}

fn show(flow: &FlowLine, form: LineForm) -> String {
    let FlowLine { flow_log, interface, flow_direction, action, packets, bytes, .. } = flow;
    // Of a line's date everybody knows it.
    let time = flow.time.split('T').nth(1).unwrap_or(&flow.time).trim_end_matches('Z');
    let words = flow.to_string();
    let (ends, destination) = words.split_once(" > ").unwrap_or((&words, ""));
    let why = why(flow);
    let line = if form == LineForm::Table {
        format!(
            "{time:<15} {flow_log:<14} {interface:<10} {flow_direction:<7} {action:<6} {ends:<30} {destination:<30} {packets:>8} {bytes:>11} {why}"
        )
    } else {
        let count = match flow.lost_packets {
            Some(lost) => format!("{lost} packets lost"),
            None => format!("{packets} packets {bytes} B"),
        };
        let space = if why.is_empty() { "" } else { " " };
        format!("{time} {flow_log}/{interface} {flow_direction} {action} {words} {count}{space}{why}")
    };
    format!("{}\n", printable(line.trim_end()))
}

/// Why packets died, and whose doing it was.
fn why(flow: &FlowLine) -> String {
    let reason = flow.reject_reason.as_deref().or(flow.lost_reason.as_deref()).unwrap_or_default();
    match &flow.verdict_rule {
        Some(rule) => format!("{reason} ({rule})"),
        None => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    fn query(args: &[&str]) -> Result<String, clap::Error> {
        let command = Filter::augment_args(Command::new("observe"));
        let matches = command.try_get_matches_from(["observe"].iter().chain(args))?;
        Ok(Filter::from_arg_matches(&matches)?.path("flows", Vec::new()))
    }

    #[test]
    fn not_is_about_the_condition_behind_it() {
        let good = |args: &[&str]| query(args).expect("good");
        assert_eq!(good(&[]), "flows?");
        assert_eq!(good(&["--port", "22", "--not", "--ip", "10.0.0.0/8"]), "flows?not.ip=10.0.0.0%2F8&port=22");
        assert_eq!(
            good(&["--not", "--port=22", "--port=23", "-i", "tap0"]),
            "flows?not.port=22&port=23&interface=tap0"
        );
        assert_eq!(
            good(&["--port", "1", "--not", "--port", "2", "--not", "-i", "a"]),
            "flows?port=1&not.port=2&not.interface=a"
        );
        assert!(query(&["--port", "22", "--not"]).is_err() && query(&["--not", "--not", "--port", "22"]).is_err());
    }

    #[test]
    fn a_line_says_who_to_whom_how_much_and_why() {
        let flow = FlowLine {
            time: "2026-11-27T14:31:07.123456Z".to_owned(),
            flow_log: "web".to_owned(),
            interface: "tap0".to_owned(),
            action: "REJECT".to_owned(),
            flow_direction: "ingress".to_owned(),
            protocol: 6,
            srcaddr: "fd00::9".to_owned(),
            srcport: Some(4_431),
            dstaddr: "fd00::2".to_owned(),
            dstport: Some(22),
            packets: 12,
            bytes: 720,
            reject_reason: Some("NETFILTER_DROP".to_owned()),
            verdict_rule: Some("sg-ssh".to_owned()),
            ..FlowLine::default()
        };
        assert_eq!(
            show(&flow, LineForm::Compact),
            "14:31:07.123456 web/tap0 ingress REJECT tcp [fd00::9]:4431 > [fd00::2]:22 12 packets 720 B NETFILTER_DROP (sg-ssh)\n"
        );
        let nasty = FlowLine { flow_log: "\u{1b}[2Jweb\n".to_owned(), ..flow };
        assert!(!show(&nasty, LineForm::Table).trim_end().contains(['\u{1b}', '\n']));
    }
}
