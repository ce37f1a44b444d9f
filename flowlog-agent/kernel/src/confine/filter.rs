//! A filter of system calls: `seccomp(2)`.
//!
//! It names what is refused, not what is allowed. What the C library, the runtime and the TLS library call depends on their versions, the
//! kernel and the machine; a list of that is wrong one day, in a place that no test comes to, and a capture ends for it. What is refused
//! here would make more of an agent that somebody else has taken over: other programs, other processes' memory, other file systems,
//! modules, keys, another clock. The answer is EPERM, as for whoever lacks a capability.

use std::collections::BTreeMap;

use libc::EPERM;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

use super::ConfineError;

/// Calls that are refused, whatever their arguments.
#[rustfmt::skip]
const REFUSED: &[i64] = &[
    // Other programs.
    libc::SYS_execve, libc::SYS_execveat,
    // Other processes, and ways around this filter.
    libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_process_madvise, libc::SYS_pidfd_getfd,
    libc::SYS_kcmp, libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register,
    // Other file systems and roots; files by number.
    libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_chroot, libc::SYS_move_mount, libc::SYS_open_tree,
    libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_fspick, libc::SYS_mount_setattr, libc::SYS_quotactl,
    libc::SYS_open_by_handle_at, libc::SYS_mknodat, libc::SYS_fanotify_init, libc::SYS_acct,
    // The kernel itself.
    libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module, libc::SYS_kexec_load, libc::SYS_kexec_file_load,
    libc::SYS_reboot, libc::SYS_swapon, libc::SYS_swapoff, libc::SYS_syslog, libc::SYS_userfaultfd, libc::SYS_perf_event_open,
    // Keys of the kernel.
    libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl,
    // Another user, another namespace, another host name, another time, another kind of process.
    libc::SYS_setuid, libc::SYS_setgid, libc::SYS_setreuid, libc::SYS_setregid, libc::SYS_setresuid, libc::SYS_setresgid,
    libc::SYS_setfsuid, libc::SYS_setfsgid, libc::SYS_setgroups, libc::SYS_unshare, libc::SYS_sethostname,
    libc::SYS_setdomainname, libc::SYS_settimeofday, libc::SYS_clock_settime, libc::SYS_clock_adjtime, libc::SYS_adjtimex,
    libc::SYS_personality,
];

/// The same, of the machines that have them.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[i64] =
    &[libc::SYS_mknod, libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_uselib];
/// The same, of the machines that have them.
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[i64] = &[];

/// From here on x86-64 has a second number for every call (`__X32_SYSCALL_BIT`), with which all of the above would be had again. No
/// machine has a call of its own there.
const X32_FIRST: u32 = 0x4000_0000;

/// Gives up privileges by `execve`, and has the calls refused from now on: to this thread, and to those that it will make.
pub(super) fn install(enters_namespaces: bool) -> Result<(), ConfineError> {
    // The library sets `no_new_privs` first: without CAP_SYS_ADMIN there are no filters otherwise.
    Ok(seccompiler::apply_filter(&program(enters_namespaces)?)?)
}

fn program(enters_namespaces: bool) -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().chain(REFUSED_HERE).map(|call| (*call, Vec::new())).collect();
    // An agent that captures in other network namespaces enters these, and no others.
    let other_kind = SeccompCondition::new(
        1,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Ne,
        u64::from(libc::CLONE_NEWNET.cast_unsigned()),
    )?;
    let unless = if enters_namespaces { vec![SeccompRule::new(vec![other_kind])?] } else { Vec::new() };
    rules.insert(libc::SYS_setns, unless);
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let refuse = SeccompAction::Errno(EPERM.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse.clone(), arch)?;
    let mut program = without_x32(refuse.into());
    program.extend(BpfProgram::try_from(filter)?);
    Ok(program)
}

/// What the library, which compares numbers one by one, cannot say (rust-vmm/seccompiler#74): from one number on, all are refused.
fn without_x32(refusal: u32) -> BpfProgram {
    let step = |code: u32, jump_if_not, k| {
        let code = u16::try_from(code).expect("codes of the classic machine have 16 bits");
        sock_filter { code, jt: 0, jf: jump_if_not, k }
    };
    vec![
        // The number is the first word of `struct seccomp_data`.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, X32_FIRST),
        step(libc::BPF_RET | libc::BPF_K, 0, refusal),
    ]
}

#[cfg(test)]
#[allow(unsafe_code, reason = "system calls by number")]
mod tests {
    use std::io;

    use super::*;

    /// Makes a call whose arguments are `first`, `second` and nonsense; the error's number.
    fn errno(call: i64, first: i64, second: i64) -> Option<i32> {
        // SAFETY: -1 is no address, no descriptor and no process: whatever call it is, the kernel refuses it or has nothing to do.
        let returned = unsafe { libc::syscall(call, first, second, -1, -1, -1, -1) };
        if returned == -1 { io::Error::last_os_error().raw_os_error() } else { None }
    }

    /// A filter is its thread's: the other tests keep their calls.
    fn with_a_filter(enters_namespaces: bool, work: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(move || {
            install(enters_namespaces).expect("a filter");
            work();
        });
        thread.join().expect("the thread's own words");
    }

    #[test]
    fn every_call_of_the_list_is_refused_by_both_of_its_numbers_and_others_are_not() {
        with_a_filter(false, || {
            for call in REFUSED.iter().chain(REFUSED_HERE).chain(&[libc::SYS_setns]) {
                for number in [*call, *call | i64::from(X32_FIRST)] {
                    assert_eq!(errno(number, -1, -1), Some(EPERM), "call {number}");
                }
            }
            assert_eq!(errno(libc::SYS_close, -1, -1), Some(libc::EBADF));
            assert_eq!(errno(libc::SYS_setns, -1, i64::from(libc::CLONE_NEWNET)), Some(EPERM));
        });
    }

    #[test]
    fn an_agent_that_follows_interfaces_enters_network_namespaces_only() {
        with_a_filter(true, || {
            assert_eq!(errno(libc::SYS_setns, -1, i64::from(libc::CLONE_NEWNET)), Some(libc::EBADF));
            for kind in [0, libc::CLONE_NEWUTS, libc::CLONE_NEWNET | libc::CLONE_NEWUTS] {
                assert_eq!(errno(libc::SYS_setns, -1, i64::from(kind)), Some(EPERM), "kind {kind:#x}");
            }
        });
    }
}
