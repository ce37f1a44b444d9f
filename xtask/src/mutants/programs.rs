//! Mutants of the eBPF programs. Their objects are built again in the copy, and must still load: a program that the verifier
//! refuses fails every test, and shows nothing.

use super::{Mutant, Test};

const VERDICT: &str = "flowlog-ebpf/src/bin/flowlog/verdict.rs";

/// A test of the kernel that no mutant here may fail: it loads the programs, and refuses nothing.
pub const LOADS: &str = "non_ip_frames_are_counted_as_such_and_never_as_flows";

/// See [`super::MUTANTS`].
pub const PROGRAMS: &[Mutant] = &[
    Mutant {
        name: "identity-by-address-only",
        file: VERDICT,
        from: "    event.by_address = number == 0 && !note::numbered();\n    event.links = u64::from(number);\n    if event.by_address {\n",
        to: "    event.by_address = false;\n    event.links = u64::from(number);\n    if number != 1 {\n",
        noticed_by: Test::Kernel("what_a_neighbour_on_the_bridge_is_refused_does_not_show"),
    },
    Mutant {
        name: "identity-by-number-only",
        file: VERDICT,
        from: "    let same = event.note.address == event.cause.address",
        to: "    let same = event.note.address != 1",
        noticed_by: Test::Kernel("only_the_copy_of_a_packet_is_refused"),
    },
    Mutant {
        name: "earlier-notes-not-followed",
        file: VERDICT,
        from: "u64::from(event.note.prev)",
        to: "0",
        noticed_by: Test::Kernel("a_port_and_its_bridge_are_both_refused"),
    },
    Mutant {
        name: "addresses-of-the-dying-headers",
        file: VERDICT,
        from: "        refuse::noted::<V4>(event);\n",
        to: "        (event.note.key.src, event.note.key.dst) = (event.v4.src, event.v4.dst);\n        refuse::noted::<V4>(event);\n",
        noticed_by: Test::Kernel("a_refused_packet_keeps_the_addresses_it_had_on_the_wire"),
    },
    Mutant {
        name: "a-sockets-own-filter-refuses",
        file: VERDICT,
        from: " || event.cause.own_filter || weak",
        to: " || weak",
        noticed_by: Test::Kernel("multicast_sockets_with_filters_refuse_nothing"),
    },
    Mutant {
        name: "one-copy-of-a-flood-is-all-of-it",
        file: VERDICT,
        from: "    let copies_live_on = ingress && d.cloned && ",
        to: "    let copies_live_on = ingress && d.cloned && d.sharers() == 0 && ",
        noticed_by: Test::Kernel("a_frame_to_an_unknown_station_is_refused_per_port_and_accepted_where_it_came_in"),
    },
    Mutant {
        name: "what-a-bridge-hands-up-is-all-there-is",
        file: VERDICT,
        from: "(d.group || handed_up || ",
        to: "(d.group || (handed_up && d.sharers() == 0) || ",
        noticed_by: Test::Kernel("what_a_promiscuous_bridge_refuses_for_itself_is_not_refused_on_its_way"),
    },
    Mutant {
        name: "a-copy-for-this-node-leaves",
        file: VERDICT,
        from: "    if is_looped_back(event) {\n",
        to: "    if is_looped_back(event) && event.wire.packets == 0 {\n",
        noticed_by: Test::Kernel("what_is_sent_to_many_and_refused_is_refused_once"),
    },
];
