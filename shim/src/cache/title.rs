//! What a process is called by, where others look: `ps`, and the `delete` action, which must not take another shim for
//! its own.

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt, ptr};

/// Room for other arguments, as the last one of a process that is to get them.
pub(super) fn room() -> String {
    "-".repeat(600)
}

/// Has the kernel tell other arguments of this process than it was started with. Those that find no room are left out.
pub(super) fn change(arguments: &[&OsStr]) {
    let Some((start, end)) = place() else { return };
    let room = end - start;
    let mut bytes = Vec::with_capacity(room);
    for argument in arguments {
        if bytes.len() + argument.len() < room {
            bytes.extend_from_slice(argument.as_bytes());
            bytes.push(0);
        }
    }
    bytes.resize(room, 0);
    // SAFETY: the kernel says that this process has its arguments there. They are writable, as all of the first stack,
    // and stay there until the end; whoever reads them meanwhile, in `std::env::args`, finds strings that end.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), start as *mut u8, room) };
}

/// Where this process has its arguments: fields 48 and 49 of proc(5)'s `stat`.
fn place() -> Option<(usize, usize)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field, a name in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(45).map(|field| field.parse().ok());
    let (start, end) = (fields.next()??, fields.next()??);
    (start != 0 && start < end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Not a test by itself: what the test below runs in a process of its own.
    #[test]
    fn is_another() {
        if std::env::var_os("TITLE").is_some() {
            let far = "x".repeat(5000);
            change(["shim", &far, "-id", "p1"].map(OsStr::new).as_slice());
            println!("{:?}", String::from_utf8(fs::read("/proc/self/cmdline").unwrap()).unwrap());
        }
    }

    #[test]
    fn a_process_is_called_otherwise_as_far_as_there_is_room() {
        let program = std::env::current_exe().unwrap();
        let name = "cache::title::tests::is_another";
        let output = Command::new(program)
            .args(["--exact", name, "--nocapture", "--skip", &room()])
            .env("TITLE", "1")
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(r#""shim\0-id\0p1\0\0"#) && !text.contains("nocapture"), "{text}");
    }
}
