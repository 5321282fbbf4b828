//! The maps of this process, as the kernel counts them: what is resident, and what kind of memory it is.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;

use super::kibibytes;

/// Addresses, from the first to behind the last.
pub type Addresses = std::ops::Range<u64>;

/// A stack has a guard of a page or a few before it. What `malloc` reserves for an arena is far larger.
const MOST_GUARD_BYTES: u64 = 64 << 10;

/// Bytes of `/proc/self/pagemap` for each page.
const ENTRY_BYTES: usize = 8;

/// Resident bytes of all maps, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Maps {
    /// Programs and libraries: their code, constants and variables, shared with other processes or not.
    pub code: u64,
    /// The stacks of all threads.
    pub stacks: u64,
    /// The maps within the addresses that were asked for.
    pub asked: u64,
    /// Maps of other files, and what the kernel maps by itself.
    pub other_files: u64,
    /// All other anonymous memory: the heap, and what was mapped without a file.
    pub anonymous: u64,
    /// Bytes of a page.
    pub page: u64,
}

/// One map.
struct Map<'a> {
    addresses: Addresses,
    /// Such as `r-xp`.
    access: &'a str,
    /// A path, a name in brackets, or nothing.
    name: &'a str,
    resident: u64,
    page: u64,
}

impl Maps {
    /// The maps of this process, those within `asked` apart. `None` if the system does not report them.
    pub fn now(asked: Option<&Addresses>) -> Option<Self> {
        let text = fs::read_to_string("/proc/self/smaps").ok()?;
        Some(Self::of(&parse(&text), asked)).filter(|maps| maps.page > 0)
    }

    /// Resident bytes of everything.
    pub const fn total(&self) -> u64 {
        self.code + self.stacks + self.asked + self.other_files + self.anonymous
    }

    fn of(maps: &[Map<'_>], asked: Option<&Addresses>) -> Self {
        let runs = |map: &&Map<'_>| map.access.contains('x') && map.name.starts_with('/');
        let programs: BTreeSet<&str> = maps.iter().filter(runs).map(|map| map.name).collect();
        let mut sums = Self::default();
        // Whether the map before belongs to a program, and where its variables without a value may follow.
        let (mut code_end, mut guard_end) = (None, None);
        for map in maps {
            let Addresses { start, end } = map.addresses;
            // The last page of a file is rarely full.
            let is_within = |asked: &Addresses| {
                asked.start <= start && end <= asked.end.next_multiple_of(map.page.max(1))
            };
            let is_code = programs.contains(map.name)
                || (map.name.is_empty() && code_end == Some(start) && map.access.starts_with("rw"));
            let sum = if asked.is_some_and(is_within) {
                &mut sums.asked
            } else if is_code {
                &mut sums.code
            } else if map.name.starts_with("[stack") || guard_end == Some(start) {
                &mut sums.stacks
            } else if map.name.is_empty() || map.name == "[heap]" || map.name.starts_with("[anon") {
                &mut sums.anonymous
            } else {
                &mut sums.other_files
            };
            *sum += map.resident;
            sums.page = map.page;
            code_end = programs.contains(map.name).then_some(end);
            let is_guard = map.access.starts_with("---")
                && map.name.is_empty()
                && end - start <= MOST_GUARD_BYTES;
            guard_end = is_guard.then_some(end);
        }
        sums
    }
}

/// Parses `/proc/self/smaps`: a line with addresses begins each map, and lines with a colon describe it.
fn parse(text: &str) -> Vec<Map<'_>> {
    let mut maps: Vec<Map<'_>> = Vec::new();
    for line in text.lines() {
        let head = line.split_once(' ').and_then(|(range, rest)| {
            let (start, end) = range.split_once('-')?;
            let address = |text| u64::from_str_radix(text, 16).ok();
            Some((address(start)?..address(end)?, rest))
        });
        if let Some((addresses, rest)) = head {
            // Access, offset, device, inode, and a name that may contain spaces.
            let mut words = rest.splitn(5, ' ');
            maps.push(Map {
                addresses,
                access: words.next().unwrap_or(""),
                name: words.last().unwrap_or("").trim_start(),
                resident: 0,
                page: 0,
            });
        } else if let Some(map) = maps.last_mut() {
            if let Some(bytes) = kibibytes(line, "Rss:") {
                map.resident = bytes;
            } else if let Some(bytes) = kibibytes(line, "KernelPageSize:") {
                map.page = bytes;
            }
        }
    }
    maps
}

/// Resident bytes of each group of `ranges`, page by page; `page` is the size of one. For memory that is reserved but
/// only filled as needed. `None` if the system does not report it.
pub fn resident<'a>(ranges: impl IntoIterator<Item = &'a Addresses>, page: u64) -> Option<u64> {
    let pagemap = fs::File::open("/proc/self/pagemap").ok()?;
    let mut entries = vec![0; 64 << 10];
    let mut pages = 0;
    for range in ranges {
        let (first, end) = (range.start / page, range.end.div_ceil(page));
        let (mut at, end) = (first * ENTRY_BYTES as u64, end * ENTRY_BYTES as u64);
        while at < end {
            let most = entries.len().min((end - at) as usize);
            let read = pagemap.read_at(&mut entries[..most], at).ok()?;
            if read < ENTRY_BYTES {
                return None;
            }
            // The highest bit says that the page is in memory; the others are none of our business.
            let whole = entries[..read].chunks_exact(ENTRY_BYTES);
            pages += whole
                .filter(|entry| entry[ENTRY_BYTES - 1] & 0x80 != 0)
                .count() as u64;
            at += (read / ENTRY_BYTES * ENTRY_BYTES) as u64;
        }
    }
    Some(pages * page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(head: &str, kilobytes: u64) -> String {
        format!(
            "{head}\nSize: 9 kB\nKernelPageSize:        4 kB\nRss:   {kilobytes} kB\nVmFlags: rd wr \n"
        )
    }

    #[test]
    fn every_kind_of_map_is_told_from_the_others() {
        let text = [
            map("1000-3000 r--p 00000000 fe:00 1   /usr/bin/some program", 8),
            map(
                "3000-4000 r-xp 00002000 fe:00 1   /usr/bin/some program",
                16,
            ),
            map("4000-5000 rw-p 00003000 fe:00 1   /usr/bin/some program", 4),
            // Variables without a value.
            map("5000-6000 rw-p 00000000 00:00 0 ", 2),
            map("7000-9000 rw-p 00000000 00:00 0   [heap]", 100),
            map("10000-11000 ---p 00000000 00:00 0 ", 0),
            map("11000-20000 rw-p 00000000 00:00 0 ", 12),
            map("20000-30000 rw-p 00000000 00:00 0 ", 7),
            // The rest of an arena is no guard of a stack.
            map("100000-200000 ---p 00000000 00:00 0 ", 0),
            map("200000-210000 rw-p 00000000 00:00 0 ", 5),
            map(
                "300000-400000 r--s 00000000 fe:00 9   /models/model.safetensors (deleted)",
                1000,
            ),
            map("400000-410000 r--p 00000000 fe:00 8   /models/other", 40),
            map("500000-520000 rw-p 00000000 00:00 0   [stack]", 20),
            map("600000-601000 r-xp 00000000 00:00 0   [vdso]", 1),
        ]
        .concat();
        let maps = Maps::of(&parse(&text), Some(&(0x30_0000..0x3f_fe00)));
        let expected = Maps {
            code: 30 << 10,
            stacks: 32 << 10,
            asked: 1000 << 10,
            other_files: 41 << 10,
            anonymous: 112 << 10,
            page: 4 << 10,
        };
        assert_eq!(maps, expected);
        assert_eq!(maps.total(), 1215 << 10);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pages_are_resident_once_they_are_written() {
        let Some(page) = Maps::now(None).map(|maps| maps.page) else {
            return;
        };
        let mut memory = memmap2::MmapMut::map_anon(64 * page as usize).unwrap();
        // A huge page would make all of it resident at once.
        let _ = memory.advise(memmap2::Advice::NoHugePage);
        let start = memory.as_ptr() as u64;
        let all = [
            start..start + 32 * page,
            start + 32 * page..start + 64 * page,
        ];
        assert_eq!(resident(&all, page), Some(0));
        for written in [0, 5, 40] {
            memory[written * page as usize] = 1;
        }
        assert_eq!(resident(&all, page), Some(3 * page));
        assert_eq!(resident(&all[..1], page), Some(2 * page));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_maps_add_up_to_what_is_resident() {
        let maps = Maps::now(None).unwrap();
        assert!(maps.code > 1 << 20, "{maps:?}");
        assert!(maps.stacks > 0 && maps.anonymous > 0, "{maps:?}");
        let resident = crate::memory::resident().unwrap();
        let resident = resident.anon + resident.file + resident.shmem;
        // Other tests run meanwhile.
        let (least, most) = (resident / 2, resident * 2);
        assert!(
            (least..most).contains(&maps.total()),
            "{maps:?}, {resident}"
        );
    }
}
