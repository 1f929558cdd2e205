//! Where libvirt keeps what belongs to a domain beside its disks: paths that no definition names. As libvirt's system
//! instance has them since 1.0, with the directories that every distribution uses.

use journal_format::{DomainUuid, ImageFormat};

use super::definition::Tpm;

/// Directory of the UEFI variables.
pub const VARIABLES: &str = "/var/lib/libvirt/qemu/nvram";
/// Directory of the TPMs' states; libvirt makes it with the first TPM.
pub const TPM_STATES: &str = "/var/lib/libvirt/swtpm";

/// The file of UEFI variables that libvirt would make for a domain of this name.
pub fn variables(name: &str, format: ImageFormat) -> String {
    format!("{VARIABLES}/{name}_VARS.{}", variables_extension(format))
}

/// What the name of such a file ends in.
pub fn variables_extension(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Raw => "fd",
        ImageFormat::Qcow2 => "qcow2",
    }
}

/// The directories of one domain's TPM below `states`, outermost first.
pub fn tpm_directories(states: &str, uuid: DomainUuid, version: Tpm) -> [String; 2] {
    let own = format!("{states}/{uuid}");
    let inner = match version {
        Tpm::V1 => "tpm1.2",
        Tpm::V2 => "tpm2",
    };
    [own.clone(), format!("{own}/{inner}")]
}

/// The file that holds a TPM's state.
pub fn tpm_state(states: &str, uuid: DomainUuid, version: Tpm) -> String {
    let [_, inner] = tpm_directories(states, uuid, version);
    let file = match version {
        Tpm::V1 => "tpm-00.permall",
        Tpm::V2 => "tpm2-00.permall",
    };
    format!("{inner}/{file}")
}
