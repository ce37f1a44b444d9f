//! One random network, with everything that happens in it; runs it, and narrows a failure down.

use std::fmt::Write as _;

use anyhow::Context as _;

use super::{
    build::{self, Network},
    expect::{self, Counters},
    features::Features,
    flows::{self, Flow},
    judge::{self, Figures, Watch},
    noise::Noise,
    prng::Prng,
    rules, send,
    topology::{Endpoint, Topology},
};
use crate::{agent::Agent, rows::Objects};

/// Everything that a seed decides.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    /// What it may contain.
    pub features: Features,
    pub topology: Topology,
    /// Its traffic and rules.
    pub flows: Vec<Flow>,
    pub tracked: bool,
    /// Sockets that only look.
    pub noise: Vec<Noise>,
    /// Interfaces that are watched.
    pub watched: Vec<String>,
    /// The agent's other arguments.
    pub arguments: Vec<String>,
}

#[derive(Debug)]
pub struct Failure {
    /// A line for each mismatch; empty if it could not be run.
    pub mismatches: Vec<String>,
    pub text: String,
}

impl Scenario {
    /// The one of a seed.
    #[must_use]
    pub fn random(seed: u64, features: &Features) -> Self {
        let mut rng = Prng::new(seed);
        let topology = Topology::random(&mut rng, features);
        let cpus =
            if features.has("smp") { std::thread::available_parallelism().map_or(1, Into::into).min(2) } else { 1 };
        let flows = flows::random(&mut rng, features, &topology, cpus);
        let translated = flows.iter().any(|f| f.translated.is_some() || f.masquerade);
        let tracked = translated || (features.has("ct") && rng.chance(40));
        let noise = Noise::random(&mut rng, features, topology.guests());
        let mut watched: Vec<String> = topology.devices().into_iter().filter(|_| rng.chance(65)).collect();
        if watched.is_empty() {
            watched.push(rng.pick(&topology.devices()).clone());
        }
        let mut arguments = Vec::new();
        let ports: Vec<String> = (0..topology.guests()).map(|g| format!("p{g}")).collect();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(|w| (*w).to_owned()));
        if features.has("rejected") && rng.chance(15) {
            add(&["--action", "rejected"]);
        }
        match rng.below(100) {
            // The kernel refuses an XDP program below a device that has one: ports only.
            0..12 if features.has("xdp") => {
                add(&["--hook", "xdp"]);
                watched.retain(|device| ports.contains(device));
                if watched.is_empty() {
                    watched.push(rng.pick(&ports).clone());
                }
            }
            12..27 if features.has("clsact") => add(&["--hook", "clsact"]),
            _ => {}
        }
        if features.has("smallcache") && rng.chance(30) {
            add(&["--cache-slots", "16", "--refused-slots", "16"]);
        }
        Self { seed, features: features.clone(), topology, flows, tracked, noise, watched, arguments }
    }

    /// Builds it, runs it, judges it.
    ///
    /// # Errors
    /// With the replay, if anything does not agree or cannot be run.
    pub fn run(&self) -> Result<Figures, Failure> {
        let outcome = self.try_run();
        let (mismatches, mut text) = match outcome {
            Ok((figures, wrong, _)) if wrong.is_empty() => return Ok(figures),
            Ok((_, wrong, more)) => (wrong.clone(), wrong.join("\n") + "\n\n" + &more),
            Err(error) => (Vec::new(), format!("{error:#}\n")),
        };
        let _ = write!(text, "\n{self}");
        Err(Failure { mismatches, text })
    }

    fn try_run(&self) -> anyhow::Result<(Figures, Vec<String>, String)> {
        let t = &self.topology;
        let net = Network::build(t, &self.flows).context("the network")?;
        let rules = rules::host(&self.flows, t, self.tracked);
        if !rules.is_empty() {
            net.host.nft(&rules).context("rules")?;
        }
        for g in 0..t.guests() {
            let rules = rules::guest(&self.flows, g);
            if !rules.is_empty() {
                net.guests[g].nft(&rules).context("a guest's rules")?;
            }
        }
        let interfaces: Vec<&str> = self.watched.iter().map(String::as_str).collect();
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let mut agent = Agent::start(&net.host, &interfaces, &arguments)?;
        let sockets = self.noise.iter().map(|n| n.open(&net)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut rng = Prng::new(self.seed ^ 1);
        let sent = send::send(&net, t, &self.flows, &mut rng).context("traffic")?;
        net.wait_until_quiet();
        drop(sockets);
        let ended = agent.end();
        let landed = Objects::below(&agent.objects())?;
        let counters = counters(&net)?;
        let expected = expect::expected(t, &self.flows, self.tracked, &sent, &counters);
        let watch = Watch {
            interfaces: &self.watched,
            only_rejected: self.arguments.iter().any(|a| a == "rejected"),
            clones: self.noise.iter().any(|n| n.makes_clones()),
        };
        let (figures, mut wrong) = judge::judge(&watch, &expected, &landed);
        if let Err(error) = ended {
            wrong.push(format!("the agent: {error:#}"));
        }
        let mut more = String::new();
        if !wrong.is_empty() {
            let _ = writeln!(more, "sent: {:?}\ncounters: {counters:?}", sent.forward);
            let _ = writeln!(more, "lost by devices: {:?}", net.dropped()?);
        }
        Ok((figures, wrong, more))
    }

    /// Leaves out whatever the failure does not need. Runs it many times.
    #[must_use]
    pub fn minimise(&self, say: &mut dyn FnMut(&str)) -> Self {
        let mut least = self.clone();
        let keep = |least: &mut Self, without: Self, what: &str, say: &mut dyn FnMut(&str)| {
            // A failure that is seen sometimes is tried twice.
            let fails = (0..2).any(|_| without.run().is_err_and(|f| !f.mismatches.is_empty()));
            if fails {
                say(&format!("still fails without {what}"));
                *least = without;
            }
            fails
        };
        for i in (0..least.noise.len()).rev() {
            let mut without = least.clone();
            let what = format!("{:?}", without.noise.remove(i));
            keep(&mut least, without, &what, say);
        }
        for i in (0..least.flows.len()).rev().filter(|_| self.flows.len() > 1) {
            let mut without = least.clone();
            let what = format!("flow {}", without.flows.remove(i).id);
            if !without.flows.is_empty() {
                keep(&mut least, without, &what, say);
            }
        }
        for i in (0..least.watched.len()).rev() {
            let mut without = least.clone();
            let what = format!("watching {}", without.watched.remove(i));
            if !without.watched.is_empty() {
                keep(&mut least, without, &what, say);
            }
        }
        for (what, change) in SIMPLER {
            let mut without = least.clone();
            change(&mut without);
            keep(&mut least, without, what, say);
        }
        least
    }
}

type Simpler = (&'static str, fn(&mut Scenario));

/// Ways to make a network simpler.
const SIMPLER: [Simpler; 5] = [
    ("arguments", |s| s.arguments.clear()),
    ("NAPI batches", |s| {
        s.topology.gro = false;
        s.topology.threaded = false;
    }),
    ("a thread for NAPI", |s| s.topology.threaded = false),
    ("tracking", |s| s.tracked = s.flows.iter().any(|f| f.translated.is_some() || f.masquerade)),
    ("a second CPU", |s| s.flows.iter_mut().for_each(|f| f.cpu = 0)),
];

fn counters(net: &Network) -> anyhow::Result<Counters> {
    let json: serde_json::Value = serde_json::from_str(&net.host.exec("nft -j list counters")?)?;
    let mut all = Counters::new();
    for c in json["nftables"].as_array().into_iter().flatten().filter_map(|o| o.get("counter")) {
        let name = c["name"].as_str().context("name")?.to_owned();
        all.insert(name, (c["packets"].as_u64().context("packets")?, c["bytes"].as_u64().context("bytes")?));
    }
    Ok(all)
}

impl std::fmt::Display for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "cargo xtask fuzz verdicts --seed {} --features {}", self.seed, self.features)?;
        let t = &self.topology;
        writeln!(f, "\n# network (gro: {}, threaded: {}, ports: {:?})", t.gro, t.threaded, t.ports)?;
        let guests: Vec<String> = (0..t.guests()).map(|g| format!("guest{g}")).collect();
        for (ns, tool, line) in build::commands(t, &self.flows, "host", &guests) {
            let ns = ns.map_or(String::new(), |n| format!(" -n {n}"));
            writeln!(f, "{tool}{ns} {line}")?;
        }
        writeln!(f, "\n# nft -f, host\n{}", rules::host(&self.flows, t, self.tracked))?;
        for g in 0..t.guests() {
            let rules = rules::guest(&self.flows, g);
            if !rules.is_empty() {
                writeln!(f, "# nft -f, guest{g}\n{rules}")?;
            }
        }
        writeln!(f, "# agent\n--interface {} {}", self.watched.join(" --interface "), self.arguments.join(" "))?;
        writeln!(f, "\n# sockets\n{:?}\n\n# traffic", self.noise)?;
        for flow in &self.flows {
            let source = flow.source(t);
            let target = flow.target(t);
            write!(f, "flow {}: {:?} {} x {} bytes ", flow.id, flow.proto, flow.count, flow.payload)?;
            write!(f, "from {} ({source}) to {} ({target} port {}), CPU {}", flow.from, flow.to, flow.port, flow.cpu)?;
            let marks = [
                (flow.big, "fragments"),
                (flow.spread, "many source ports"),
                (flow.echo, "answered"),
                (flow.notrack, "not tracked"),
                (flow.masquerade, "masqueraded"),
                (flow.guest_firewall, "refused by the guest"),
                (flow.filtered, "the socket refuses all"),
                (flow.linear.is_some(), "headers in page fragments"),
                (flow.processes > 1, "several processes"),
            ];
            for (_, mark) in marks.iter().filter(|(on, _)| *on) {
                write!(f, ", {mark}")?;
            }
            if let Some(port) = flow.translated {
                write!(f, ", translated to {} port {port}", flow.receiver(t))?;
            }
            if let Some(tee) = flow.tee {
                write!(f, ", copied to {}{}", Endpoint::Guest(tee.guest), if tee.refused { " (refused)" } else { "" })?;
            }
            if let Some(rule) = &flow.rule {
                let what = if rule.reply { "replies" } else { "it" };
                write!(f, "; {what} refused at {:?}: {:?} {:?}", rule.hook, rule.refusal, rule.partial)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
