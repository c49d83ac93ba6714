//! Mount options: those that are flags of the system call, and those the file system reads.

use nix::mount::MsFlags;

/// Options as mount(8) spells them; the flag is set or, for the second kind, cleared.
const FLAGS: &[(&str, MsFlags, bool)] = &[
    ("defaults", MsFlags::empty(), true),
    ("ro", MsFlags::MS_RDONLY, true),
    ("rw", MsFlags::MS_RDONLY, false),
    ("nosuid", MsFlags::MS_NOSUID, true),
    ("suid", MsFlags::MS_NOSUID, false),
    ("nodev", MsFlags::MS_NODEV, true),
    ("dev", MsFlags::MS_NODEV, false),
    ("noexec", MsFlags::MS_NOEXEC, true),
    ("exec", MsFlags::MS_NOEXEC, false),
    ("sync", MsFlags::MS_SYNCHRONOUS, true),
    ("async", MsFlags::MS_SYNCHRONOUS, false),
    ("dirsync", MsFlags::MS_DIRSYNC, true),
    ("mand", MsFlags::MS_MANDLOCK, true),
    ("nomand", MsFlags::MS_MANDLOCK, false),
    ("noatime", MsFlags::MS_NOATIME, true),
    ("atime", MsFlags::MS_NOATIME, false),
    ("nodiratime", MsFlags::MS_NODIRATIME, true),
    ("diratime", MsFlags::MS_NODIRATIME, false),
    ("relatime", MsFlags::MS_RELATIME, true),
    ("norelatime", MsFlags::MS_RELATIME, false),
    ("strictatime", MsFlags::MS_STRICTATIME, true),
    ("bind", MsFlags::MS_BIND, true),
    ("rbind", MsFlags::MS_BIND.union(MsFlags::MS_REC), true),
];

/// Both kinds of options of one mount.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) flags: MsFlags,
    /// What is left, joined with commas.
    pub(super) data: String,
}

impl Options {
    /// Splits `options`, each of which may itself be a list with commas.
    pub(super) fn parse<'a>(options: impl IntoIterator<Item = &'a str>) -> Self {
        let mut flags = MsFlags::empty();
        let mut data = Vec::new();
        for option in options.into_iter().flat_map(|list| list.split(',')).filter(|option| !option.is_empty())
        {
            match FLAGS.iter().find(|(name, ..)| *name == option) {
                Some((_, flag, set)) => flags.set(*flag, *set),
                None => data.push(option),
            }
        }
        Self { flags, data: data.join(",") }
    }
}

/// The value of the last `key=value` among `options`.
pub(super) fn value<'a>(options: &'a [String], key: &str) -> Option<&'a str> {
    let pairs = options.iter().flat_map(|list| list.split(',')).filter_map(|option| option.split_once('='));
    pairs.filter(|(name, _)| *name == key).map(|(_, value)| value).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_data_are_told_apart() {
        let options =
            Options::parse(["trans=virtio,version=9p2000.L", "ro", "nodev,,cache=mmap", "defaults"]);
        assert_eq!(options.flags, MsFlags::MS_RDONLY | MsFlags::MS_NODEV);
        assert_eq!(options.data, "trans=virtio,version=9p2000.L,cache=mmap");
    }

    #[test]
    fn the_later_of_two_contradicting_options_wins() {
        assert_eq!(Options::parse(["ro", "rw"]).flags, MsFlags::empty());
        assert_eq!(Options::parse(["rw", "ro"]).flags, MsFlags::MS_RDONLY);
    }

    #[test]
    fn a_value_is_found_in_any_list() {
        let options = ["a=1,mode=0700".to_owned(), "mode=0711".to_owned(), "modes".to_owned()];
        assert_eq!(value(&options, "mode"), Some("0711"));
        assert_eq!(value(&options, "gid"), None);
    }
}
