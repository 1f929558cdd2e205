//! What a VM is made of, row by row, and the test that shows what becomes of each: carried, or refused by name. None is silent:
//! a row without a test, or with one that is gone, fails here.

/// What becomes of a part of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It arrives, or is made anew as the plan says.
    Carried,
    /// The clone is made without it, where that is asked for, and the plan says so.
    LeftBehind,
    /// There is no clone, and the part is named before anything is touched.
    Refused,
}
use Fate::{Carried, LeftBehind, Refused};

const REWRITING: &str = include_str!("rewriting.rs");
const LIBVIRT: &str = include_str!("libvirt.rs");
const LEAVING: &str = include_str!("leaving.rs");
const REFUSALS: &str = include_str!("refusals.rs");
const IMAGES: &str = include_str!("images.rs");
const CARRYING: &str = include_str!("../carrying/main.rs");
const FLATTENED: &str = include_str!("../carrying/flattened.rs");
const FLAT: &str = include_str!("../hostile/flat.rs");
const WHOLE: &str = include_str!("../carrying/whole.rs");
const SNAPSHOTS: &str = include_str!("../carrying/snapshots.rs");
const SNAPSHOTS_REFUSED: &str = include_str!("../../src/preflight/snapshots.rs");
const LABELS: &str = include_str!("../carrying/labels.rs");
const LEFT_BEHIND: &str = include_str!("../carrying/left_behind.rs");
const BELONGINGS: &str = include_str!("../replace/belongings.rs");
const REPLACE: &str = include_str!("../replace/flags.rs");
const REFUSED_HOSTS: &str = include_str!("../refusals/main.rs");
const PREFLIGHT: &str = include_str!("../../src/preflight/tests.rs");
const PLAN: &str = include_str!("../../src/plan/tests.rs");
const TARGET: &str = include_str!("../devices/target.rs");
const PLACES: &str = include_str!("../devices/places.rs");
const VOLUMES: &str = include_str!("../devices/volumes.rs");
const DEVICES: &str = include_str!("../devices/block.rs");
const NAME: &str = include_str!("../../src/domain/name.rs");

/// Part, fate, and where the test is that shows it.
const ROWS: &[(&str, Fate, &str, &str)] = &[
    ("a name, and all names made of it", Carried, NAME, "everything_derived_from_the_longest_name_fits"),
    (
        "a name that libvirt or a filesystem cannot take",
        Refused,
        NAME,
        "refuses_what_libvirt_or_a_file_system_cannot_take",
    ),
    ("UUID, SMBIOS UUID, genid, MACs", Carried, REWRITING, "everything_asked_is_there_afterwards"),
    ("MACs that are kept", Carried, PLAN, "kept_addresses_are_kept_as_they_are_written"),
    (
        "a UUID that is kept",
        Carried,
        REPLACE,
        "a_clone_that_keeps_its_identity_is_marked_and_replaces_no_vm_of_the_same_uuid",
    ),
    ("an OVS interface id, a tap device of its own name", Refused, REFUSALS, "interfaces"),
    ("fixed ports of consoles", Carried, REWRITING, "all_is_carried_and_warnings_are_named"),
    ("a fixed vsock CID", Refused, REFUSALS, "other_devices"),
    ("files, sockets and logs of consoles and channels", Refused, REFUSALS, "consoles_and_channels"),
    ("a disk's format that is not said", Refused, REFUSALS, "disks"),
    ("headers of qcow2", Carried, IMAGES, "headers_say_what_qemu_img_says"),
    ("raw and qcow2 files", Carried, CARRYING, "the_clone_differs_in_what_the_plan_printed_and_in_nothing_else"),
    ("internal snapshots", Carried, CARRYING, "a_chain_arrives_whole_and_stands_on_its_own_layers"),
    ("disks of one basename", Carried, REWRITING, "one_path_that_begins_like_another_is_not_touched"),
    ("mode and owner", Carried, PLAN, "an_owner_that_the_destination_does_not_know_is_root_there"),
    ("an external data file", Refused, REFUSALS, "disks"),
    ("an encrypted image", Refused, IMAGES, "luks_is_refused"),
    ("a backing chain", Carried, CARRYING, "a_chain_arrives_whole_and_stands_on_its_own_layers"),
    (
        "a backing chain that arrives as one image",
        Carried,
        FLATTENED,
        "a_flattened_chain_that_was_killed_in_the_middle_arrives_as_its_guest_saw_it_and_boots",
    ),
    (
        "internal snapshots in a chain that is to arrive as one image",
        Refused,
        FLATTENED,
        "a_chain_with_an_internal_snapshot_is_not_flattened_and_one_without_is_on_its_own_host_too",
    ),
    (
        "a chain of images that cannot be read here and is to arrive as one",
        Refused,
        FLAT,
        "what_cannot_be_flattened_is_refused_by_name",
    ),
    ("a flattened disk in the definition", Carried, REWRITING, "a_flattened_disk_is_raw_and_stands_on_nothing"),
    (
        "a backing chain that cannot be followed",
        Refused,
        CARRYING,
        "a_chain_that_cannot_be_followed_is_refused_by_name",
    ),
    ("block devices", Carried, DEVICES, "a_block_device_arrives_as_a_file"),
    ("a block device that is written to while it is cloned", Carried, DEVICES, "a_device_that_changed_is_read_again"),
    ("pool volumes", Carried, VOLUMES, "a_volume_arrives_as_a_file_wherever_it_goes"),
    (
        "devices and volumes in the definition",
        Carried,
        REWRITING,
        "a_device_or_a_volume_becomes_a_file_and_the_rest_of_its_disk_stays",
    ),
    ("a place of its own for each disk", Carried, PLACES, "each_disk_arrives_where_it_was_asked_for"),
    ("a block device as the clone's disk", Carried, TARGET, "a_device_that_was_named_twice_becomes_the_clones_disk"),
    (
        "a block device that was not named twice, or that somebody may need",
        Refused,
        TARGET,
        "a_device_that_somebody_may_need_is_refused_by_name",
    ),
    (
        "a file that becomes a device, in the definition",
        Carried,
        REWRITING,
        "a_file_or_a_volume_becomes_a_device_and_the_rest_of_its_disk_stays",
    ),
    ("devices and volumes that are shared or only read, network and nvme disks", Refused, REFUSALS, "disks"),
    ("media, shared and read-only disks", Carried, CARRYING, "a_medium_is_emptied_kept_or_copied_and_never_silently"),
    ("UEFI variables", Carried, CARRYING, "uefi_variables_and_tpm_arrive_and_the_clone_starts_with_them"),
    ("UEFI variables that no definition names", Carried, REWRITING, "variables_are_made_explicit"),
    (
        "UEFI variables of other firmware",
        Refused,
        PREFLIGHT,
        "firmware_of_another_size_is_refused_and_of_another_build_told",
    ),
    ("TPM state", Carried, CARRYING, "uefi_variables_and_tpm_arrive_and_the_clone_starts_with_them"),
    ("an encrypted TPM, a TPM of the host", Refused, REFUSALS, "other_devices"),
    ("networks and bridges", Carried, REWRITING, "everything_asked_is_there_afterwards"),
    ("networks and bridges that are not there", Refused, REFUSED_HOSTS, "destinations_that_cannot_take_the_clone"),
    ("host devices, shared directories, NVDIMMs", Refused, REFUSALS, "other_devices"),
    ("kernel, initrd, device tree, firmware in ROM", Refused, REFUSALS, "machine_and_firmware"),
    ("arguments for QEMU, hugepages, cpusets, NUMA nodes, static labels", Refused, REFUSALS, "beside_the_devices"),
    ("secrets of consoles", Carried, CARRYING, "uefi_variables_and_tpm_arrive_and_the_clone_starts_with_them"),
    ("secrets of disks", Refused, REFUSALS, "disks"),
    (
        "libvirt snapshots",
        Carried,
        SNAPSHOTS,
        "snapshots_arrive_and_the_clone_reverts_to_them_on_its_own_disk_and_variables",
    ),
    (
        "libvirt snapshots of a VM that ran, and of a clone that replaces a VM",
        Carried,
        SNAPSHOTS,
        "beside_its_source_and_in_the_place_of_another_a_clone_reverts_without_touching_either",
    ),
    (
        "external libvirt snapshots, and those that do not fit the VM as it is",
        Refused,
        SNAPSHOTS_REFUSED,
        "each_thing_that_a_snapshot_cannot_bring_is_named",
    ),
    ("checkpoints, managed save", Refused, PREFLIGHT, "each_thing_in_the_way_is_named"),
    (
        "devices that cannot be carried, with --drop",
        LeftBehind,
        LEFT_BEHIND,
        "devices_of_the_host_are_refused_or_left_behind_and_all_else_arrives",
    ),
    (
        "checkpoints and managed save, with --drop",
        LeftBehind,
        LEFT_BEHIND,
        "checkpoints_and_saved_memory_are_refused_or_left_behind_and_stay_at_the_source",
    ),
    (
        "everything else of a definition with a device that is left behind",
        Carried,
        LEAVING,
        "what_is_left_behind_leaves_the_definition_as_it_was_without_it",
    ),
    ("autostart", Carried, PLAN, "what_was_asked_for_is_in_the_steps"),
    ("title", Carried, REWRITING, "titles_come_change_and_go"),
    ("metadata of others", Carried, REWRITING, "a_source_s_own_mark_is_replaced_and_others_metadata_kept"),
    ("everything else in the definition", Carried, REWRITING, "every_byte_outside_of_the_named_spans_stays"),
    (
        "everything else, by libvirt's own word",
        Carried,
        LIBVIRT,
        "libvirt_takes_every_rewritten_definition_and_keeps_all_of_it",
    ),
    ("an element that is not known", Refused, REFUSALS, "beside_the_devices"),
    ("a transient domain", Refused, PREFLIGHT, "each_thing_in_the_way_is_named"),
    (
        "all of it in one guest, which then boots",
        Carried,
        WHOLE,
        "the_whole_guest_arrives_and_boots_from_its_own_disk_with_its_own_variables",
    ),
    ("default security labels", Carried, LABELS, "what_is_published_gets_its_default_label_where_the_host_has_labels"),
    (
        "saved memory and snapshots of a VM that is replaced",
        Carried,
        BELONGINGS,
        "an_old_vm_with_saved_memory_and_a_snapshot_is_as_before_or_gone_whole",
    ),
    (
        "named UEFI variables and checkpoints of a VM that is replaced",
        Carried,
        BELONGINGS,
        "an_old_vm_with_named_variables_and_a_checkpoint_is_as_before_or_gone_whole",
    ),
    (
        "the TPM of a VM that is replaced",
        Carried,
        BELONGINGS,
        "an_old_vm_that_runs_with_a_tpm_is_as_before_or_gone_whole",
    ),
    (
        "UEFI variables by the name of a VM that is kept",
        Carried,
        BELONGINGS,
        "an_old_vm_that_is_kept_finds_its_own_variables",
    ),
    ("leftovers under the new name", Refused, REFUSED_HOSTS, "destinations_that_cannot_take_the_clone"),
];

#[test]
fn every_row_has_its_test() {
    for (part, fate, file, test) in ROWS {
        let heading = format!("#[test]\nfn {test}() {{");
        let indented = format!("#[test]\n    fn {test}() {{");
        let allowed = format!("#[allow(clippy::too_many_lines)] // a table\nfn {test}() {{");
        let is_there = [heading, indented, allowed].iter().any(|form| file.contains(form.as_str()));
        assert!(is_there, "{part} ({fate:?}): the test {test} is gone");
    }
}

#[test]
fn no_part_is_named_twice() {
    let parts: std::collections::BTreeSet<_> = ROWS.iter().map(|row| row.0).collect();
    assert_eq!(parts.len(), ROWS.len());
}
