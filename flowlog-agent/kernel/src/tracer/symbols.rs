//! Where in the kernel an address is, in words.

use crate::layout;

/// Functions are shorter; what is further behind one is in none that is listed.
const FUNCTION_BYTES_MAX: u64 = 1 << 20;

/// The kernel's functions, by address.
#[derive(Default)]
pub(super) struct Symbols {
    text: String,
    /// Address, and where its name is in the text.
    places: Vec<(u64, usize, usize)>,
}

impl Symbols {
    /// Those of the running kernel; none, if they are hidden.
    pub(super) fn read() -> Self {
        layout::symbols().map(Self::of).unwrap_or_default()
    }

    fn of(text: String) -> Self {
        let begin = text.as_ptr().addr();
        let mut places: Vec<_> = layout::text_symbols(&text)
            .map(|(address, name)| (address, name.as_ptr().addr() - begin, name.len()))
            .collect();
        places.sort_unstable();
        Self { text, places }
    }

    /// `FUNCTION+OFFSET [MODULE]`, or the address alone.
    pub(super) fn words(&self, address: u64) -> String {
        let behind = self.places.partition_point(|(begin, ..)| *begin <= address);
        let found = behind.checked_sub(1).and_then(|n| self.places.get(n));
        match found.filter(|(begin, ..)| address - begin < FUNCTION_BYTES_MAX) {
            Some((begin, at, len)) => {
                let name = self.text.get(*at..at + len).unwrap_or_default();
                let (function, module) = name.split_once('\t').unwrap_or((name, ""));
                let blank = if module.is_empty() { "" } else { " " };
                format!("{function}+{:#x}{blank}{module}", address - begin)
            }
            None => format!("{address:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_the_function_that_begins_last_before_it() {
        let text = "ffffffff81000100 T first\nffffffffc0001000 t in_module\t[mod]\nffffffff81000000 T zeroth\n0000000000000000 T per_cpu\n";
        let symbols = Symbols::of(text.to_owned());
        for (address, words) in [
            (0xffff_ffff_8100_0000, "zeroth+0x0"),
            (0xffff_ffff_8100_00ff, "zeroth+0xff"),
            (0xffff_ffff_8100_0104, "first+0x4"),
            (0xffff_ffff_c000_1010, "in_module+0x10 [mod]"),
            (0xffff_ffff_9000_0000, "0xffffffff90000000"),
            (7, "0x7"),
        ] {
            assert_eq!(symbols.words(address), words);
        }
        assert_eq!(Symbols::default().words(1), "0x1");
    }
}
