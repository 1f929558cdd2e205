//! Every kind of thing that is not carried is refused by its name: one line each, put into a VM that is carried.

use kvm_clone::domain::{Definition, uncarried};

const MACHINE: &str = "<emulator>/usr/bin/qemu-system-x86_64</emulator>";

/// A VM with one plain disk, and with these pieces in it.
fn vm(os: &str, beside: &str, devices: &str) -> String {
    format!(
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n<name>a</name>\
         <uuid>6a1c2b1e-0a55-4d8e-9f43-0d7c5b1a0001</uuid><memory>65536</memory>{beside}<os><type>hvm</type>{os}</os>\
         <devices>{MACHINE}<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/i/a.img'/>\
         <target dev='vda' bus='virtio'/></disk>{devices}</devices></domain>"
    )
}

/// Blockers as `where: what`.
fn blockers(text: &str) -> Vec<String> {
    let carriage = uncarried(&Definition::parse(text).unwrap()).unwrap();
    let all = carriage.blockers.iter().chain(&carriage.warnings);
    all.for_each(|found| assert!(!found.why.is_empty() && !found.advice.is_empty(), "{found}"));
    carriage.blockers.iter().map(|found| format!("{}: {}", found.where_, found.what)).collect()
}

fn assert_refused(text: &str, expected: &str) {
    let found = blockers(text);
    assert!(found.len() == 1 && found[0].contains(expected), "{found:#?} should be {expected:?} alone\n{text}");
}

#[test]
fn the_vm_itself_is_carried() {
    assert!(blockers(&vm("", "", "")).is_empty());
}

/// A second disk `vdb`, with these attributes and this inside.
fn disk(attributes: &str, inside: &str) -> String {
    format!("<disk {attributes}>{inside}<target dev='vdb' bus='virtio'/></disk>")
}

#[test]
fn disks() {
    let file = "<driver name='qemu' type='qcow2'/><source file='/i/b.img'/>";
    let plain = "type='file' device='disk'";
    let driver = "<driver name='qemu' type='raw'/>";
    let inside = |more: &str| disk(plain, &format!("{file}{more}"));
    let source =
        |more: &str| disk(plain, &format!("<driver name='qemu' type='qcow2'/><source file='/i/b.img'>{more}</source>"));
    for (devices, expected) in [
        (
            inside("<backingStore type='block'><format type='raw'/><source dev='/dev/vg/base'/></backingStore>"),
            "disk vdb: a backing chain",
        ),
        (
            inside("<encryption format='luks'><secret type='passphrase' usage='x'/></encryption>"),
            "disk vdb: an encrypted image",
        ),
        (source("<encryption format='luks'/>"), "disk vdb: an encrypted image"),
        (source("<slices><slice type='storage' offset='0' size='1'/></slices>"), "disk vdb: a slice"),
        (source("<dataStore type='file'><source file='/i/d'/></dataStore>"), "disk vdb: an external data file"),
        (source("<reservations managed='yes'/>"), "disk vdb: SCSI reservations"),
        (source("<seclabel model='dac' relabel='yes'><label>x</label></seclabel>"), "disk vdb: a security label"),
        (source("<news/>"), "disk vdb: the element <news>"),
        (inside("<auth username='u'><secret type='ceph' usage='x'/></auth>"), "disk vdb: a secret"),
        (inside("<mirror type='file' file='/i/m'/>"), "disk vdb: a running copy"),
        (inside("<backenddomain name='d'/>"), "disk vdb: a backend domain"),
        (inside("<news/>"), "disk vdb: the element <news>"),
        (inside("<transient/>"), "disk vdb: a transient disk"),
        (
            disk("type='block' device='disk'", &format!("{driver}<source dev='/dev/vg/lv'/><shareable/>")),
            "disk vdb: a block device that is only read or shared (dev=/dev/vg/lv)",
        ),
        (
            disk("type='block' device='disk'", &format!("{driver}<source dev='vg/lv'/>")),
            "disk vdb: an image without an absolute path",
        ),
        (
            disk("type='block' device='disk'", "<source dev='/dev/vg/lv'/>"),
            "disk vdb: an image whose format is not said",
        ),
        (
            disk("type='volume' device='disk'", &format!("{driver}<source pool='p' volume='v'/><readonly/>")),
            "disk vdb: a volume of a pool that is only read or shared (pool=p volume=v)",
        ),
        (
            disk("type='volume' device='cdrom'", &format!("{driver}<source pool='p' volume='v'/>")),
            "disk vdb: a medium in a drive (pool=p volume=v)",
        ),
        (
            disk("type='volume' device='disk'", &format!("{driver}<source pool='p' volume='v' mode='direct'/>")),
            "disk vdb: a volume of a pool that QEMU itself connects to (pool=p volume=v mode=direct)",
        ),
        (
            disk(
                "type='network' device='disk'",
                &format!("{driver}<source protocol='rbd' name='p/i'><host name='h'/></source>"),
            ),
            "disk vdb: a network disk (protocol=rbd name=p/i)",
        ),
        (
            disk("type='nvme' device='disk'", &format!("{driver}<source type='pci' namespace='1'><address/></source>")),
            "disk vdb: an NVMe device",
        ),
        (disk("type='dir' device='disk'", &format!("{driver}<source dir='/srv/d'/>")), "disk vdb: a directory"),
        (
            disk("type='vhostuser' device='disk'", &format!("{driver}<source type='unix' path='/run/s'/>")),
            "disk vdb: a disk served by another process",
        ),
        (
            disk("type='vhostvdpa' device='disk'", &format!("{driver}<source dev='/dev/vhost-vdpa-0'/>")),
            "disk vdb: a disk served by another process",
        ),
        (disk("type='newer' device='disk'", &format!("{driver}<source x='y'/>")), "disk vdb: a disk of type newer"),
        (disk("type='block' device='lun'", &format!("{driver}<source dev='/dev/sdx'/>")), "disk vdb: a SCSI device"),
        (disk("type='file' device='newer'", file), "disk vdb: a device of a kind that is not known here (newer)"),
        (
            disk("type='network' device='cdrom'", &format!("{driver}<source protocol='http' name='/cd.iso'/>")),
            "disk vdb: a medium in a drive (protocol=http name=/cd.iso)",
        ),
        (disk(plain, driver), "disk vdb: a disk without an image"),
        (disk(plain, &format!("{driver}<source file='i.img'/>")), "disk vdb: an image without an absolute path"),
        (
            disk(plain, "<driver name='qemu' type='vmdk'/><source file='/i/b'/>"),
            "disk vdb: an image of format \"vmdk\"",
        ),
        (disk(plain, "<source file='/i/b'/>"), "disk vdb: an image whose format is not said"),
        (disk(plain, &format!("{driver}<source file='/i/a.img'/>")), "disk vdb: the same image as disk vda"),
        (inside("").replace("vdb", "vda"), "disk vda: two disks of one target name"),
        (inside("").replace("vdb", "../x"), "disk ../x: a target name that no file"),
        (inside("").replace("vdb", "vdbvdbvdbvdbvdbvdb"), "a target name that no file"),
    ] {
        assert_refused(&vm("", "", &devices), expected);
    }
}

#[test]
fn interfaces() {
    let mac = "<mac address='52:54:00:00:00:01'/>";
    let network = format!("{mac}<source network='n'/>");
    for (kind, inside, expected) in [
        ("direct", "<source dev='eth0' mode='bridge'/>", "an interface of type \"direct\" (dev=eth0 mode=bridge)"),
        ("hostdev", "<source><address type='pci'/></source>", "an interface of type \"hostdev\""),
        ("ethernet", "", "an interface of type \"ethernet\""),
        ("vdpa", "<source dev='/dev/vhost-vdpa-0'/>", "an interface of type \"vdpa\""),
        ("vhostuser", "<source type='unix' path='/run/v' mode='client'/>", "an interface of type \"vhostuser\""),
        ("mcast", "<source address='230.0.0.1' port='5558'/>", "an interface of type \"mcast\""),
        ("internal", "<source name='x'/>", "an interface of type \"internal\""),
        ("network", "", "an interface of type \"network\" ()"),
    ] {
        let interface = format!("<interface type='{kind}'>{mac}{inside}</interface>");
        assert_refused(&vm("", "", &interface), &format!("network interface 52:54:00:00:00:01: {expected}"));
    }
    for (inside, expected) in [
        ("<virtualport type='openvswitch'><parameters interfaceid='x'/></virtualport>", "a virtual port (openvswitch)"),
        ("<target dev='tap-web'/>", "a fixed name for its tap device (tap-web)"),
        ("<target dev='vnetx'/>", "a fixed name for its tap device (vnetx)"),
        ("<script path='/etc/ifup'/>", "a script of the host (/etc/ifup)"),
        ("<rom file='/usr/share/rom.bin'/>", "rom: a path of the host"),
        ("<backend tap='/dev/other' vhost='/dev/vhost-net'/>", "backend: a path of the host (tap: /dev/other)"),
        ("<news/>", "the element <news>"),
    ] {
        assert_refused(&vm("", "", &format!("<interface type='network'>{network}{inside}</interface>")), expected);
    }
}

#[test]
fn other_devices() {
    for (device, expected) in [
        (
            "<tpm model='tpm-crb'><backend type='emulator' version='2.0'><encryption secret='x'/></backend></tpm>",
            "device <tpm>: an encrypted TPM",
        ),
        (
            "<tpm model='tpm-crb'><backend type='emulator'><source type='dir' path='/srv/tpm'/></backend></tpm>",
            "device <tpm>: a TPM whose state lies in a place of its own",
        ),
        (
            "<tpm model='tpm-crb'><backend type='external'><source type='unix' path='/s'/></backend></tpm>",
            "device <tpm>: a TPM of the host",
        ),
        (
            "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
            "device <tpm>: a TPM of the host",
        ),
        (
            "<hostdev mode='subsystem' type='pci'><source><address bus='0x06'/></source></hostdev>",
            "device <hostdev>: a device of the host (bus=0x06)",
        ),
        (
            "<filesystem type='mount'><source dir='/srv'/><target dir='t'/></filesystem>",
            "device <filesystem>: a shared directory",
        ),
        ("<shmem name='s'><model type='ivshmem-plain'/></shmem>", "device <shmem>: memory shared"),
        ("<lease><lockspace>l</lockspace><key>k</key><target path='/l'/></lease>", "device <lease>: a lease"),
        ("<pstore backend='acpi-erst'><path>/p</path></pstore>", "device <pstore>: a persistent store"),
        (
            "<memory model='nvdimm'><source><path>/i/nv</path></source><target/></memory>",
            "device <memory>: memory of model nvdimm",
        ),
        (
            "<memory model='virtio-pmem'><source><path>/i/nv</path></source><target/></memory>",
            "memory of model virtio-pmem",
        ),
        ("<memory model='sgx-epc'><target/></memory>", "memory of model sgx-epc"),
        (
            "<memory model='dimm'><source><nodemask>1</nodemask></source><target/></memory>",
            "memory from chosen NUMA nodes",
        ),
        (
            "<vsock model='virtio'><cid auto='no' address='3'/></vsock>",
            "device <vsock>: a fixed address for vsock (CID 3)",
        ),
    ] {
        assert_refused(&vm("", "", device), expected);
    }
}

#[test]
fn consoles_and_channels() {
    for (device, expected) in [
        (
            "<serial type='file'><source path='/var/log/a'/><target port='0'/></serial>",
            "device <serial>: a file of the host (path=/var/log/a)",
        ),
        ("<serial type='dev'><source path='/dev/ttyS0'/><target port='0'/></serial>", "a dev of the host"),
        ("<serial type='pipe'><source path='/run/p'/><target port='0'/></serial>", "a pipe of the host"),
        ("<serial type='nmdm'><source master='/dev/a' slave='/dev/b'/></serial>", "a nmdm of the host"),
        (
            "<channel type='unix'><source mode='bind' path='/run/s'/><target type='virtio' name='org.x'/></channel>",
            "channel org.x: a unix of the host (mode=bind path=/run/s)",
        ),
        ("<serial type='newer'><target port='0'/></serial>", "device <serial>: a source of type \"newer\""),
        (
            "<console type='pty'><log file='/var/log/c' append='on'/><target/></console>",
            "device <console>: a log file of the host (/var/log/c)",
        ),
        (
            "<redirdev bus='usb' type='unix'><source mode='bind' path='/r'/></redirdev>",
            "device <redirdev>: a unix of the host",
        ),
        ("<smartcard mode='host'/>", "device <smartcard>: a smart card of the host"),
        ("<smartcard mode='host-certificates'><certificate>c</certificate></smartcard>", "a smart card of the host"),
        (
            "<rng model='virtio'><backend model='random'>/dev/mine</backend></rng>",
            "rng/backend: a path of the host (its text: /dev/mine)",
        ),
        (
            "<rng model='virtio'><backend model='egd' type='unix'><source path='/e'/></backend></rng>",
            "device <rng>: a unix of the host",
        ),
        ("<rng model='virtio'><backend model='newer'/></rng>", "device <rng>: the element <backend>"),
        ("<graphics type='sdl' display=':0' xauth='/root/.Xauthority'/>", "graphics on the host's own display"),
        ("<graphics type='dbus' address='unix:path=/run/bus'/>", "graphics on the host's own display or bus"),
        ("<graphics type='newer'/>", "graphics on the host's own display"),
        (
            "<graphics type='vnc'><listen type='socket' socket='/run/vnc'/></graphics>",
            "graphics/listen: a path of the host (socket: /run/vnc)",
        ),
        ("<graphics type='vnc'><listen type='network' network='n'/></graphics>", "a console on the network n"),
        (
            "<graphics type='spice'><gl enable='yes' rendernode='/dev/dri/renderD128'/></graphics>",
            "(rendernode: /dev/dri/renderD128)",
        ),
        ("<audio id='1' type='alsa'><input dev='hw0'/></audio>", "device <audio>: sound through the host's alsa"),
        (
            "<input type='evdev'><source dev='/dev/input/event1'/></input>",
            "input/source: a path of the host (dev: /dev/input/event1)",
        ),
        (
            "<video><driver name='vhostuser'/><model><acceleration rendernode='/dev/dri/r'/></model></video>",
            "a path of the host",
        ),
        ("<flux-capacitor power='1.21'/>", "devices: the element <flux-capacitor>"),
        ("<x:disk xmlns:x='urn:x' file='/a'/>", "devices: the element <disk xmlns='urn:x'>"),
    ] {
        assert_refused(&vm("", "", device), expected);
    }
}

#[test]
fn machine_and_firmware() {
    for (os, expected) in [
        ("<nvram type='network'><source protocol='nbd'/></nvram>", "os: UEFI variables in a network"),
        ("<nvram type='block'><source dev='/dev/x'/></nvram>", "os: UEFI variables in a block"),
        ("<nvram format='vmdk'>/n/a_VARS.fd</nvram>", "os: UEFI variables of format"),
        ("<loader type='rom'>/usr/share/bios.bin</loader>", "os: firmware of the host (/usr/share/bios.bin)"),
        ("<kernel>/boot/vmlinuz</kernel>", "os: a kernel of the host (/boot/vmlinuz)"),
        ("<initrd>/boot/initrd</initrd>", "os: an initrd of the host"),
        ("<dtb>/boot/x.dtb</dtb>", "os: a device tree of the host"),
        ("<shim>/boot/shim</shim>", "os: a boot shim of the host"),
        ("<acpi><table type='slic'>/sys/firmware/slic</table></acpi>", "os/acpi/table: a path of the host"),
        ("<varstore path='/v'/>", "os: the element <varstore>"),
    ] {
        assert_refused(&vm(os, "", ""), expected);
    }
    assert_refused(&vm("", "", "").replace(">hvm<", ">xen<"), "os: a guest of type \"xen\"");
    assert_refused(&vm("", "", "").replace("type='kvm'", "type='xen'"), "domain: a domain of type \"xen\"");
}

#[test]
fn beside_the_devices() {
    for (beside, expected) in [
        ("<qemu:commandline><qemu:arg value='-s'/></qemu:commandline>", "qemu:commandline: arguments for QEMU itself"),
        ("<memoryBacking><hugepages/></memoryBacking>", "memoryBacking: huge pages"),
        ("<memoryBacking><source type='file'/></memoryBacking>", "memoryBacking: memory in a file of the host"),
        ("<memoryBacking><news/></memoryBacking>", "memoryBacking: the element <news>"),
        ("<vcpu cpuset='0-3'>4</vcpu>", "vcpu: CPUs of the host by number"),
        (
            "<cputune><vcpupin vcpu='0' cpuset='1'/><emulatorpin cpuset='1'/></cputune>",
            "cputune: CPUs of the host by number (in 2 pinnings)",
        ),
        ("<cputune><cachetune vcpus='0'><cache/></cachetune></cputune>", "cputune: a share of the host's cache"),
        (
            "<cputune><memorytune vcpus='0'><node/></memorytune></cputune>",
            "cputune: a share of the host's cache or memory bandwidth",
        ),
        ("<numatune><memory mode='strict' nodeset='1'/></numatune>", "numatune: NUMA nodes of the host"),
        ("<seclabel type='static' model='selinux'><label>x</label></seclabel>", "seclabel: a static security label"),
        ("<launchSecurity type='sev'><policy>0x1</policy></launchSecurity>", "launchSecurity: an encrypted guest"),
        (
            "<resource><partition>/machine/special</partition></resource>",
            "resource: a resource partition of the host (/machine/special)",
        ),
        (
            "<blkiotune><device><path>/dev/sda</path><weight>500</weight></device></blkiotune>",
            "blkiotune/device/path: a path of the host",
        ),
        (
            "<sysinfo type='fwcfg'><entry name='opt/x' file='/etc/x'/></sysinfo>",
            "sysinfo/entry: a path of the host (file: /etc/x)",
        ),
        ("<bootloader>/usr/bin/pygrub</bootloader>", "domain: the element <bootloader>"),
        ("<flux/>", "domain: the element <flux>"),
        ("<x:flux xmlns:x='urn:x'/>", "domain: the element <flux xmlns='urn:x'>"),
    ] {
        assert_refused(&vm("", beside, ""), expected);
    }
}

#[test]
fn all_are_named_at_once() {
    let found = blockers(&vm(
        "<kernel>/boot/vmlinuz</kernel>",
        "<qemu:commandline><qemu:arg value='/a'/></qemu:commandline>",
        "<tpm><backend type='passthrough'/></tpm><lease/><flux/>",
    ));
    assert_eq!(found.len(), 5, "{found:#?}");
}

#[test]
fn what_looks_like_a_path_and_is_none_is_carried() {
    let text = vm(
        "<cmdline>/not/a/path</cmdline>",
        "<title>/t</title><description>/d</description><metadata><x:a xmlns:x='urn:x' b='/c'>/e</x:a></metadata>\
         <resource><partition>/machine</partition></resource><memoryBacking><source type='memfd'/></memoryBacking>\
         <sysinfo type='smbios'><system><entry name='serial'>/s</entry></system></sysinfo>\
         <qemu:capabilities><qemu:add capability='x'/></qemu:capabilities><seclabel type='none'/>",
        "<serial type='pty' tty='/dev/pts/3'><source path='/dev/pts/3'/><target port='0'/></serial>\
         <interface type='user'><backend tap='/dev/net/tun' vhost='/dev/vhost-net'/></interface>\
         <rng model='virtio'><backend model='random'>/dev/hwrng</backend></rng><smartcard mode='passthrough' type='spicevmc'/>\
         <graphics type='vnc' port='-1'/><vsock><cid auto='yes' address='3'/></vsock>",
    );
    assert_eq!(blockers(&text), [""; 0]);
}
