/// Reads any bytes as a definition and does with it all that a clone does.
pub fn read_domain_xml(data: &[u8]) {
    use std::collections::BTreeSet;

    use kvm_clone::domain::{
        Change, CloneMark, Definition, DomainError, Identity, InterfaceSource, Rewrite, SnapshotDefinition, read_back,
        rewrite, same, uncarried,
    };

    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(snapshot) = SnapshotDefinition::parse(text) {
        let kept = snapshot.rewritten(|_| Ok::<_, DomainError>(Rewrite::default()));
        assert_eq!(kept.ok().as_deref(), Some(text));
        let named = |_: &Definition| Ok(Rewrite { name: Some("another".into()), ..Rewrite::default() });
        if let Ok(text) = snapshot.rewritten::<DomainError>(named) {
            let after = SnapshotDefinition::parse(&text).expect("a rewrite is a snapshot");
            assert_eq!((&after.name, after.memory, &after.disks), (&snapshot.name, snapshot.memory, &snapshot.disks));
            assert!(after.definitions().all(|definition| definition.name == "another"));
        }
    }
    let mark = CloneMark::read(text);
    let Ok(definition) = Definition::parse(text) else { return };
    assert_eq!(rewrite(&definition, &Rewrite::default()).ok().as_deref(), Some(text));
    uncarried(&definition).expect("what was read once is read again");
    let mark = mark.ok().flatten();
    let asked = Rewrite {
        name: Some("a 'new' & \"odd\" <name>".into()),
        identity: Some(Identity {
            uuid: journal_format::DomainUuid([7; 16]),
            genid: journal_format::DomainUuid([8; 16]),
        }),
        title: Change::Set("title".into()),
        emulator: Some("/emulator".into()),
        disk_files: definition.images().map(|disk| (disk.index, format!("/new/{}'\"", disk.index))).collect(),
        disk_devices: std::collections::BTreeMap::new(),
        variables: Some("/new/'variables'".into()),
        chain_files: definition
            .images()
            .filter_map(|disk| {
                let layers = disk.chain.as_ref()?.len();
                Some((disk.index, (0..layers).map(|layer| format!("/new/layer{layer}'")).collect()))
            })
            .collect(),
        flattened: BTreeSet::new(),
        emptied: definition.media().map(|disk| disk.index).collect(),
        macs: (0..definition.interfaces.len()).map(|index| (index, format!("52:54:00:00:00:{index:02x}"))).collect(),
        networks: definition
            .interfaces
            .iter()
            .filter(|interface| matches!(interface.source, InterfaceSource::Network(_) | InterfaceSource::Bridge(_)))
            .map(|interface| (interface.index, "'lan' & \"more\"".to_owned()))
            .collect(),
        mark: mark.clone().map_or(Change::Remove, Change::Set),
    };
    let flattened: BTreeSet<_> = definition.images().map(|disk| disk.index).collect();
    if let Ok(text) = rewrite(&definition, &Rewrite { flattened: flattened.clone(), ..Rewrite::default() }) {
        let after = Definition::parse(&text).expect("a rewrite is a definition");
        let disks = || flattened.iter().map(|index| &after.disks[*index]);
        assert!(disks().all(|disk| disk.format.as_deref() == Some("raw") && disk.chain.is_none()));
    }
    // Overlaps and refusals are fine; what is written must be what was asked.
    if let Ok(text) = rewrite(&definition, &asked) {
        let after = Definition::parse(&text).expect("a rewrite is a definition");
        assert_eq!(Some(&after.name), asked.name.as_ref());
        assert_eq!(after.title.as_deref(), Some("title"));
        assert_eq!(after.emulator, asked.emulator);
        for (index, file) in &asked.disk_files {
            assert_eq!(after.disks[*index].image(), Some(file.as_str()));
        }
        assert_eq!(after.os.variables.and_then(|variables| variables.path), asked.variables);
        for (index, mac) in &asked.macs {
            assert_eq!(after.interfaces[*index].mac.as_ref(), Some(mac));
        }
        assert_eq!(CloneMark::read(&text).expect("a mark that was written is read"), mark);
        let _ = same(definition.text(), &text);
        let _ = read_back(definition.text(), &text);
    }
    let _ = read_back(text, text);
    assert_eq!(same(text, text), Ok(true));
}
