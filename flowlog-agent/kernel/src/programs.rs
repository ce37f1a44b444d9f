//! The loaded programs: verifying them, handing them out, running one once.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::{
    Ebpf,
    maps::{Map, ProgramArray},
    programs::{
        BtfTracePoint, Program, ProgramError, ProgramFd, RawTracePoint, SchedClassifier, TestRun as _, TestRunOptions,
        Xdp,
    },
};
use flowlog_ebpf::abi::{OWN_EGRESS, OWN_INGRESS, VERDICT_FIRST, VERDICT_NESTED};
use flowlog_model::{figures::ProgramFigures, rule::Direction};

use super::{
    KernelError, bpf,
    entry::{self, Way},
    heap,
    object::MapFds,
    outer::{Outer, Parts},
    trace::{Pair, TraceError},
};

/// The checked-in eBPF object; `cargo xtask check` proves that it is what the sources build to.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../flowlog-ebpf/prebuilt/flowlog.bpf.o"));

/// See the module's head.
pub struct Programs {
    /// Those of the maps that nobody else holds are in it, too.
    ebpf: Ebpf,
    /// Hooks for other network namespaces that are loaded, and in the arrays that entries jump through.
    elsewhere: Vec<Way>,
    /// All maps: programs that are made for those of others are loaded later.
    maps: MapFds,
}

impl Programs {
    /// Has the kernel verify all programs; attaches none.
    pub(super) fn load(mut ebpf: Ebpf) -> Result<Self, KernelError> {
        let maps = all_maps(&ebpf)?;
        let refused = |name: &'static str| {
            move |e: aya::programs::ProgramError| KernelError::from_chain(format!("load program `{name}`"), &e)
        };
        {
            let kernel_btf = aya::Btf::from_sys_fs()
                .map_err(|e| KernelError::from_chain("read the kernel's type information", &e))?;
            // What reading it took is not needed while the verifier works, which takes as much again.
            heap::give_back();
            for name in ["flowlog_verdict", "flowlog_verdict_nested", "flowlog_drop", "flowlog_drop_nested"] {
                program::<BtfTracePoint>(&mut ebpf, name)?.load("kfree_skb", &kernel_btf).map_err(refused(name))?;
            }
        }
        for name in ["flowlog_tc_ingress", "flowlog_tc_egress"] {
            program::<SchedClassifier>(&mut ebpf, name)?.load().map_err(refused(name))?;
        }
        program::<Xdp>(&mut ebpf, "flowlog_xdp")?.load().map_err(refused("flowlog_xdp"))?;
        program::<RawTracePoint>(&mut ebpf, "flowlog_sweep")?.load().map_err(refused("flowlog_sweep"))?;
        Ok(Self { ebpf, elsewhere: Vec::new(), maps })
    }

    /// One of them, to be attached.
    pub(super) fn get<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P, KernelError>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        program(&mut self.ebpf, name)
    }

    pub(super) fn sweeper(&self) -> Result<&RawTracePoint, KernelError> {
        let program = self.ebpf.program("flowlog_sweep").ok_or_else(|| missing("flowlog_sweep"))?;
        program.try_into().map_err(|e: ProgramError| KernelError::from_chain("use program `flowlog_sweep`", &e))
    }

    /// Those of the maps that nobody has taken yet.
    pub(super) fn maps(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// From now on the verdict programs of this process are the ones that run.
    pub(super) fn use_verdicts(&mut self) -> Result<(), KernelError> {
        let refused = |e: aya::maps::MapError| KernelError::from_chain("replace the verdict programs", &e);
        let programs: [(u32, &str); 2] =
            [(VERDICT_FIRST, "flowlog_verdict"), (VERDICT_NESTED, "flowlog_verdict_nested")];
        let mut fds = Vec::new();
        for (index, name) in programs {
            let fd = self.fd(name)?.try_clone().map_err(|e| KernelError::Refused {
                action: format!("use program `{name}`"),
                problem: e.to_string(),
            })?;
            fds.push((index, fd));
        }
        let map = self.ebpf.map_mut("VERDICTS").ok_or_else(|| missing("VERDICTS"))?;
        let mut verdicts: ProgramArray<_> = map.try_into().map_err(refused)?;
        fds.iter().try_for_each(|(index, fd)| verdicts.set(*index, fd, 0).map_err(refused))
    }

    /// The maps of an entry that jumps to a hook. The hook is loaded and put in its place when it is first needed: most nodes watch their own
    /// namespace only. From then on all entries jump to this process's hook.
    pub(super) fn elsewhere(&mut self, way: Way) -> Result<entry::Maps<'_>, KernelError> {
        let (array, at) = way.place();
        if !self.elsewhere.contains(&way) {
            let name = way.hook();
            let refused = |e: ProgramError| KernelError::from_chain(format!("load program `{name}`"), &e);
            match way {
                Way::Tc(_) | Way::Again(_) => self.get::<SchedClassifier>(name)?.load().map_err(refused)?,
                Way::Xdp => self.get::<Xdp>(name)?.load().map_err(refused)?,
            }
            heap::give_back();
            self.put(name, array, at)?;
            self.elsewhere.push(way);
        }
        Ok(entry::Maps { cpu: self.map_fd("CPU")?, hooks: self.map_fd(array)? })
    }

    /// Puts a loaded program where others jump to.
    fn put(&mut self, name: &str, array: &'static str, at: u32) -> Result<(), KernelError> {
        let failed = |e: std::io::Error| KernelError::Refused {
            action: format!("use program `{name}`"),
            problem: e.to_string(),
        };
        let fd = self.fd(name)?.try_clone().map_err(failed)?;
        let refused = |e: aya::maps::MapError| KernelError::from_chain(format!("fill map {array}"), &e);
        let map = self.ebpf.map_mut(array).ok_or_else(|| missing(array))?;
        ProgramArray::try_from(map).and_then(|mut hooks| hooks.set(at, &fd, 0)).map_err(refused)
    }

    /// What is in the place of a hook of our own namespace while that is put in front of others. Loaded when it is first needed: it seldom
    /// is.
    pub(super) fn again(&mut self, direction: Direction) -> Result<OwnedFd, KernelError> {
        let (name, hook, at) = match direction {
            Direction::Ingress => ("flowlog_again_ingress", "flowlog_tc_ingress", OWN_INGRESS),
            Direction::Egress => ("flowlog_again_egress", "flowlog_tc_egress", OWN_EGRESS),
        };
        if self.fd(name).is_err() {
            self.get::<SchedClassifier>(name)?
                .load()
                .map_err(|e| KernelError::from_chain(format!("load program `{name}`"), &e))?;
        }
        self.put(hook, "ELSEWHERE_TC", at)?;
        self.descriptor(name)
    }

    /// What programs are loaded from by hand.
    pub(super) fn parts(&self) -> Parts<'_> {
        Parts { object: OBJECT, maps: &self.maps }
    }

    /// Puts a program of ours that runs `foreign` into an array of programs, to be measured. It runs that as long as somebody holds what is
    /// returned.
    ///
    /// # Errors
    /// In words why that cannot be.
    pub fn enter_wrapped(&self, array: BorrowedFd<'_>, at: u32, foreign: BorrowedFd<'_>) -> Result<OwnedFd, String> {
        let Outer { ours, array: own } = Outer::load(self.parts(), foreign)?;
        bpf::set_element(array, at, ours.as_fd()).map_err(|e| e.to_string())?;
        Ok(own)
    }

    /// A pair of programs that trace somebody else's.
    pub(super) fn pair_for(&self, other: BorrowedFd<'_>) -> Result<Pair, TraceError> {
        Pair::load(OBJECT, &self.maps, other)
    }

    /// Why other people's XDP programs cannot be traced on this machine; `None`: they can. Tried on a program of our own.
    #[must_use]
    pub fn untraceable(&self) -> Option<String> {
        let own = self.fd("flowlog_xdp").ok()?;
        self.pair_for(own.as_fd()).err().map(|e| e.to_string())
    }

    /// A descriptor of a loaded program.
    pub(super) fn descriptor(&self, name: &str) -> Result<OwnedFd, KernelError> {
        self.fd(name)?
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| KernelError::Refused { action: format!("use program `{name}`"), problem: e.to_string() })
    }

    fn map_fd(&self, name: &str) -> Result<BorrowedFd<'_>, KernelError> {
        match self.ebpf.map(name) {
            Some(Map::Array(data) | Map::ProgramArray(data)) => Ok(data.fd().as_fd()),
            _ => Err(missing(name)),
        }
    }

    /// Loads those, too, that are otherwise loaded when they are first needed: to look at them.
    ///
    /// # Errors
    /// If the kernel refuses one.
    pub fn load_all(&mut self) -> Result<(), KernelError> {
        let both = |way: fn(Direction) -> Way| Direction::BOTH.map(way);
        let all = both(Way::Tc).into_iter().chain([Way::Xdp]).chain(both(Way::Again));
        all.into_iter().try_for_each(|way| self.elsewhere(way).map(drop))?;
        Direction::BOTH.into_iter().try_for_each(|direction| self.again(direction).map(drop))
    }

    /// Instructions the verifier walked, by program: the measure of a program's complexity.
    ///
    /// # Errors
    /// If the kernel refuses one that was not needed so far, or does not say.
    pub fn verified_instructions(&mut self) -> Result<Vec<(String, u32)>, KernelError> {
        self.load_all()?;
        // For what they trace a program of our own will do; some machines let nobody trace any.
        let pair = self.fd("flowlog_xdp").ok().and_then(|own| self.pair_for(own.as_fd()).ok());
        let traces = pair.and_then(|pair| pair.verified_instructions().ok()).into_iter().flatten();
        let own = self.fd("flowlog_xdp")?.as_fd();
        let refused = |problem| KernelError::Refused { action: "load program `flowlog_wrap`".to_owned(), problem };
        let outer = Outer::load(self.parts(), own).map_err(refused)?;
        let count = bpf::verified_instructions(outer.ours.as_fd()).map_err(|e| refused(e.to_string()))?;
        let wrap = ("flowlog_wrap".to_owned(), count);
        let loaded = self.ebpf.programs().filter(|(_, program)| program.fd().is_ok());
        let counts: Result<Vec<_>, KernelError> = loaded
            .map(|(name, program)| {
                let info = program.info().map_err(|e| KernelError::from_chain("read program info", &e))?;
                Ok((name.to_owned(), info.verified_instruction_count().unwrap_or(0)))
            })
            .collect();
        Ok(counts?.into_iter().chain(traces).chain([wrap]).collect())
    }

    /// The kernel's ids of our own.
    #[must_use]
    pub fn ids(&self) -> Vec<u32> {
        self.ebpf.programs().filter_map(|(_, program)| Some(program.info().ok()?.id())).collect()
    }

    /// How often they have run, and for how long, where the kernel keeps statistics. What is jumped to is charged to who jumps.
    #[must_use]
    pub fn statistics(&self) -> Vec<ProgramFigures> {
        let of = |(name, program): (&str, &Program)| {
            let info = program.info().ok()?;
            let (runs, run_time) = (info.run_count(), info.run_time());
            Some(ProgramFigures { name: name.to_owned(), runs, run_time })
        };
        self.ebpf.programs().filter_map(of).collect()
    }

    /// A loaded program, to be measured by `cargo xtask bench` or looked at by tests.
    pub fn fd(&self, name: &str) -> Result<&ProgramFd, KernelError> {
        let program = self.ebpf.program(name).ok_or_else(|| missing(name))?;
        program.fd().map_err(|e| KernelError::from_chain(format!("use program `{name}`"), &e))
    }

    /// The kernel's id of a program.
    pub fn id(&self, name: &str) -> Result<u32, KernelError> {
        let program = self.ebpf.program(name).ok_or_else(|| missing(name))?;
        let info = program.info().map_err(|e| KernelError::from_chain(format!("read program `{name}`"), &e))?;
        Ok(info.id())
    }

    /// Runs a hook program once on `frame` with `BPF_PROG_TEST_RUN`, as if it had come in on the loopback device
    /// (ifindex 1). `sk_buff` is the `struct __sk_buff` handed to a TC program, `None` for XDP. Returns the
    /// program's verdict.
    pub fn test_run(&mut self, program: &str, frame: &[u8], sk_buff: Option<&[u8]>) -> Result<u32, KernelError> {
        let refused = |e: ProgramError| KernelError::from_chain(format!("run `{program}`"), &e);
        let p = self.ebpf.program(program).ok_or_else(|| missing(program))?;
        let opts = TestRunOptions { data_in: Some(frame), ctx_in: sk_buff, ..Default::default() };
        let result = match p {
            Program::SchedClassifier(p) => p.test_run(opts),
            Program::Xdp(p) => p.test_run(opts),
            _ => return Err(missing(program)),
        };
        Ok(result.map_err(refused)?.return_value)
    }
}

/// The program `name` as type `P`.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let p = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
    p.try_into().map_err(|e| KernelError::from_chain(format!("use program `{name}`"), &e))
}

/// Descriptors of all maps of the object.
fn all_maps(ebpf: &Ebpf) -> Result<MapFds, KernelError> {
    let fd = |map: &Map| match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::PerCpuArray(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => data.fd().as_fd().try_clone_to_owned().map(Some),
        _ => Ok(None),
    };
    let mut maps = MapFds::new();
    for (name, map) in ebpf.maps() {
        let fd = fd(map)
            .map_err(|e| KernelError::Refused { action: format!("use map `{name}`"), problem: e.to_string() })?;
        maps.extend(fd.map(|fd| (name.to_owned(), fd)));
    }
    Ok(maps)
}

/// Takes a map out of the object, for its owner.
pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map, KernelError> {
    ebpf.take_map(name).ok_or_else(|| missing(name))
}

pub(super) fn missing(name: &str) -> KernelError {
    KernelError::Refused { action: format!("find `{name}`"), problem: "it is not in the embedded object".to_owned() }
}
