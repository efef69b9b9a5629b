//! Which system calls a process may make: seccomp(2).

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::calls;

/// A filter of system calls, made ready.
#[derive(Debug)]
pub struct Filter(Vec<libc::sock_filter>);

/// A system call that is allowed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Call {
    Any(libc::c_long),
    /// Only with one of some values in an argument. 32 bits count: the kernel uses no more of these.
    With(libc::c_long, u8, &'static [u64]),
    /// Only with none of some bits in an argument.
    Without(libc::c_long, u8, u64),
}

impl Filter {
    /// For a program of the host, with what it starts: files, memory, processes, threads and time. Everything else does not
    /// exist (`ENOSYS`): sockets, namespaces, mounts, keys, tracing, BPF, io_uring.
    ///
    /// # Errors
    /// If the filter cannot be made.
    pub fn of_program() -> io::Result<Filter> {
        Filter::new(&[calls::PROGRAM, calls::OLD], SeccompAction::Errno(libc::ENOSYS as u32))
    }

    /// For a process of ours that moves bytes between pipes and manages its memory. Every other call kills it.
    ///
    /// # Errors
    /// If the filter cannot be made.
    pub fn of_reader() -> io::Result<Filter> {
        Filter::new(&[calls::READER], SeccompAction::KillProcess)
    }

    /// For the process of ours that answers questions for names: as for a reader, and it reads files and uses the sockets that
    /// it has. It makes no socket, listens nowhere new, and sets no option. Every other call kills it.
    ///
    /// # Errors
    /// If the filter cannot be made.
    pub fn of_resolver() -> io::Result<Filter> {
        Filter::new(&[calls::READER, calls::RESOLVER], SeccompAction::KillProcess)
    }

    /// Allows every call: for a process whose other walls a test looks at.
    #[cfg(feature = "faults")]
    pub(in crate::sys) fn open() -> Filter {
        let code = (libc::BPF_RET | libc::BPF_K) as u16;
        Filter(vec![libc::sock_filter { code, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW }])
    }

    fn new(lists: &[&[Call]], otherwise: SeccompAction) -> io::Result<Filter> {
        let mut rules = BTreeMap::new();
        for call in lists.iter().copied().flatten() {
            let (number, conditions) = call.rules().map_err(io::Error::other)?;
            rules.insert(number, conditions);
        }
        let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
        let filter = SeccompFilter::new(rules, otherwise, SeccompAction::Allow, arch);
        let program = filter.and_then(BpfProgram::try_from).map_err(io::Error::other)?;
        // Both are the kernel's `struct sock_filter`.
        let instruction =
            |i: seccompiler::sock_filter| libc::sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k };
        Ok(Filter(program.into_iter().map(instruction).collect()))
    }

    /// Puts the filter into force for this thread, for good. Makes one system call only.
    pub(super) fn load(&self) -> io::Result<()> {
        super::super::exec::load_instructions(&self.0, 0).map(drop)
    }
}

impl Call {
    fn rules(self) -> Result<(libc::c_long, Vec<SeccompRule>), seccompiler::BackendError> {
        let rule = |argument, operator, value| {
            let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
            SeccompRule::new(vec![condition])
        };
        Ok(match self {
            Call::Any(number) => (number, Vec::new()),
            Call::With(number, argument, values) => {
                let rules = values.iter().map(|value| rule(argument, SeccompCmpOp::Eq, *value));
                (number, rules.collect::<Result<_, _>>()?)
            }
            Call::Without(number, argument, bits) => {
                (number, vec![rule(argument, SeccompCmpOp::MaskedEq(bits), 0)?])
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_for_programs_has_no_call_twice_and_none_that_leads_out() {
        let all = [calls::PROGRAM, calls::OLD].concat();
        let mut numbers: Vec<_> = all.iter().map(|call| call.rules().unwrap().0).collect();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
        for bad in [
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_connect,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_clone3,
            libc::SYS_mount,
            libc::SYS_ptrace,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_open_by_handle_at,
            libc::SYS_process_vm_readv,
            libc::SYS_pidfd_getfd,
        ] {
            assert!(!numbers.contains(&bad), "{bad}");
        }
        Filter::of_program().unwrap();
    }
}
