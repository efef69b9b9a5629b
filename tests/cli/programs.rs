//! The programs as the linker left them.

/// Of a program: whether it has a fixed address, and whether it needs a loader (ELF-64, `e_type` and `PT_INTERP`).
fn is_fixed_and_dynamic(path: &str) -> (bool, bool) {
    const FIXED: u16 = 2;
    const INTERP: u32 = 3;
    let file = std::fs::read(path).unwrap();
    assert_eq!(&file[..5], b"\x7fELF\x02", "{path}");
    let short = |at: usize| u16::from_ne_bytes(file[at..at + 2].try_into().unwrap());
    let headers = u64::from_ne_bytes(file[32..40].try_into().unwrap()) as usize;
    let (size, count) = (short(54) as usize, short(56) as usize);
    let mut kinds = (0..count).map(|n| headers + n * size).map(|at| file[at..at + 4].try_into().unwrap());
    (short(16) == FIXED, kinds.any(|kind| u32::from_ne_bytes(kind) == INTERP))
}

/// docs/adr/0006: position-independent programs take too long to start.
#[test]
fn programs_need_no_loader_and_have_a_fixed_address() {
    for program in [
        env!("CARGO_BIN_EXE_spark"),
        env!("CARGO_BIN_EXE_spark-oci"),
        env!("CARGO_BIN_EXE_containerd-shim-spark-v1"),
    ] {
        assert_eq!(is_fixed_and_dynamic(program), (true, false), "{program}");
    }
    // Distributions make theirs the other way.
    assert_eq!(is_fixed_and_dynamic("/bin/sh"), (false, true));
}
