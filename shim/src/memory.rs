//! What a shim that only waits needs no memory for.
//!
//! A start touches most of the program once: configuration, the machine's command line, its monitor. The kernel keeps
//! all of that mapped, and counts it for the shim, for as long as nothing else needs the memory.

use std::ffi::{c_int, c_void};

use libc::{PF_W, PT_LOAD, dl_phdr_info, madvise, malloc_trim, sysconf};

/// Gives back what the heap has free, and the pages of the program. Those that are used again come back from the page
/// cache, without a read from the disk unless the kernel has needed their memory.
pub(crate) fn let_go() {
    // SAFETY: the allocator gives back what nobody has.
    unsafe { malloc_trim(0) };
    // SAFETY: `let_go_of` is such a callback, and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(let_go_of), std::ptr::null_mut()) };
}

/// Of the program itself, which comes first, the parts that nobody can have written to.
unsafe extern "C" fn let_go_of(info: *mut dl_phdr_info, _size: usize, _data: *mut c_void) -> c_int {
    // SAFETY: the C library passes a description that is valid during the call.
    let info = unsafe { &*info };
    // SAFETY: so many there are of them.
    let parts = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    // SAFETY: reads a number.
    let page = unsafe { sysconf(libc::_SC_PAGESIZE) } as u64;
    for part in parts.iter().filter(|part| part.p_type == PT_LOAD && part.p_flags & PF_W == 0) {
        let start = (info.dlpi_addr + part.p_vaddr) & !(page - 1);
        let end = (info.dlpi_addr + part.p_vaddr + part.p_memsz) & !(page - 1);
        // SAFETY: a private mapping of the program's file that is never written to is the same when it is read again.
        // A page that is shared with the next part is left out at the end; one at the start belongs to this part.
        unsafe { madvise(start as *mut c_void, (end - start) as usize, libc::MADV_DONTNEED) };
    }
    // No other library: those are shared with all programs.
    1
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Kilobytes of the program's instructions that are mapped, by proc(5).
    fn mapped() -> u64 {
        let program = std::env::current_exe().unwrap();
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let own = |head: &&str| head.ends_with(program.to_str().unwrap()) && head.contains(" r-xp ");
        let mut lines = maps.lines().skip_while(|line| !own(line));
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn what_the_program_has_touched_is_let_go_and_comes_back() {
        extern "C" fn touch(info: *mut dl_phdr_info, _size: usize, _data: *mut c_void) -> c_int {
            // SAFETY: the C library's description, and memory that can be read for as long as the program runs.
            unsafe {
                let parts = std::slice::from_raw_parts((*info).dlpi_phdr, (*info).dlpi_phnum.into());
                for part in parts.iter().filter(|part| part.p_type == PT_LOAD && part.p_flags & PF_W == 0) {
                    let start = ((*info).dlpi_addr + part.p_vaddr) as *const u8;
                    for at in (0..part.p_memsz as usize).step_by(4096) {
                        let _ = start.add(at).read_volatile();
                    }
                }
            }
            1
        }
        // SAFETY: `touch` takes no data.
        unsafe { libc::dl_iterate_phdr(Some(touch), std::ptr::null_mut()) };
        let before = mapped();
        let_go();
        let after = mapped();
        assert!(after < before / 2, "{before} kB, then {after} kB");
    }
}
