//! From files and sources to an inventory. A file that cannot be read or understood keeps saying what it last said, so that a slip in
//! an editor ends no capture.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs, io,
    path::{Path, PathBuf},
};

use flowlog_host::trust::{self, Kind as FileKind, Stamp, TrustError, stamp};
use uuid::Uuid;

use super::{
    BucketPlace, BucketRegistry, Contract, Inventory, Resource,
    file::{File, RawBuckets},
    known::{Known, Twice},
    source::{board::Board, follow::Sources, spec::SourceSpec},
};

/// Most drop-in files that are read: one for each VM of the largest node.
const DROP_INS_MAX: usize = 10_000;

/// Where the files are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    pub file: Option<PathBuf>,
    /// The directory of drop-ins: `*.toml` and `*.json`.
    pub dir: Option<PathBuf>,
    /// Interfaces of other network namespaces can be captured.
    pub enters_namespaces: bool,
}

/// The result of reading the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// What can be used.
    pub inventory: Inventory,
    /// What cannot, each as `file: words`.
    pub problems: Vec<String>,
}

/// The files there are.
struct Listing {
    /// To be read: the main file, then the drop-ins by name.
    files: Vec<PathBuf>,
    /// Not to be read, because others may write to their directory: what they said before holds.
    kept: Vec<PathBuf>,
    problem: Option<String>,
}

#[derive(Debug)]
pub struct Loader {
    places: Places,
    good: BTreeMap<PathBuf, (Stamp, File)>,
    bad: BTreeMap<PathBuf, (Stamp, String)>,
    /// Sources, and what they have found.
    sources: Vec<SourceSpec>,
    board: Board,
    /// What has been said of NICs that several know.
    said: BTreeSet<String>,
}

impl Loader {
    /// Reads from these places.
    #[must_use]
    pub fn new(places: Places) -> Self {
        Self {
            places,
            good: BTreeMap::new(),
            bad: BTreeMap::new(),
            sources: Vec::new(),
            board: Board::default(),
            said: BTreeSet::new(),
        }
    }

    /// And from these sources.
    #[must_use]
    pub fn with(self, sources: &Sources) -> Self {
        Self { sources: sources.specs().to_vec(), board: sources.board(), ..self }
    }

    /// Reads from these from now on.
    pub fn move_to(&mut self, places: Places) {
        self.places = places;
    }

    /// Reads files that have changed; the whole inventory as of now.
    pub fn load(&mut self) -> Loaded {
        let Listing { mut files, kept, problem } = self.files();
        let mut problems = Vec::from_iter(problem);
        self.good.retain(|path, _| files.contains(path) || kept.contains(path));
        self.bad.retain(|path, _| files.contains(path));
        for path in &files {
            if let Err(words) = self.read(path) {
                let kept = if self.good.contains_key(path) { "; what it said before still holds" } else { "" };
                problems.push(format!("{}: {words}{kept}", path.display()));
            }
        }
        files.extend(kept);
        let inventory = self.merge(&files, &mut problems);
        Loaded { inventory, problems }
    }

    /// The main file, then drop-ins by name.
    fn files(&self) -> Listing {
        let mut files: Vec<PathBuf> = self.places.file.iter().cloned().collect();
        let without_drop_ins = |files, problem| Listing { files, kept: Vec::new(), problem };
        let Some(dir) = &self.places.dir else { return without_drop_ins(files, None) };
        match trust::check(dir, FileKind::Orders) {
            Ok(()) => {}
            // A directory that nobody has made yet is an empty one.
            Err(TrustError::Unreadable(e)) if e.kind() == io::ErrorKind::NotFound => {
                return without_drop_ins(files, None);
            }
            Err(e @ TrustError::Open { .. }) => {
                let kept = self.good.keys().filter(|p| p.starts_with(dir) && !files.contains(p)).cloned().collect();
                let problem = Some(format!("{}: {e}; what was in it before still holds", dir.display()));
                return Listing { files, kept, problem };
            }
            Err(e) => return without_drop_ins(files, Some(format!("{}: {e}", dir.display()))),
        }
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) => return without_drop_ins(files, Some(format!("{}: {e}", dir.display()))),
        };
        let wanted = |p: &PathBuf| p.extension().is_some_and(|e| e == "toml" || e == "json");
        let hidden = |p: &Path| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        let mut drop_ins: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(wanted).collect();
        drop_ins.retain(|p| !hidden(p));
        drop_ins.sort();
        let too_many = drop_ins.len().checked_sub(DROP_INS_MAX).filter(|n| *n > 0);
        drop_ins.truncate(DROP_INS_MAX);
        files.extend(drop_ins);
        let problem =
            too_many.map(|n| format!("{}: {n} files past the first {DROP_INS_MAX} are not read", dir.display()));
        without_drop_ins(files, problem)
    }

    fn read(&mut self, path: &Path) -> Result<(), String> {
        let stamp = stamp(path).map_err(|e| e.to_string())?;
        if self.good.get(path).is_some_and(|(s, _)| *s == stamp) {
            self.bad.remove(path);
            return Ok(());
        }
        if let Some((_, words)) = self.bad.get(path).filter(|(s, _)| *s == stamp) {
            return Err(words.clone());
        }
        match File::read(path) {
            Ok(file) => {
                self.bad.remove(path);
                self.good.insert(path.to_owned(), (stamp, file));
                Ok(())
            }
            Err(words) => {
                self.bad.insert(path.to_owned(), (stamp, words.clone()));
                Err(words)
            }
        }
    }

    fn merge(&mut self, files: &[PathBuf], problems: &mut Vec<String>) -> Inventory {
        let mut inventory = Inventory::default();
        let mut places: BTreeMap<Uuid, (Uuid, Contract)> = BTreeMap::new();
        for path in files {
            let Some((_, file)) = self.good.get(path) else { continue };
            let mut problem = |words: String| problems.push(format!("{}: {words}", path.display()));
            merge_buckets(&mut inventory.buckets, file).into_iter().for_each(&mut problem);
            let (good, bad) = file.resources();
            bad.into_iter().for_each(&mut problem);
            for resource in good {
                if let Some(elsewhere) = resource.interfaces.iter().find(|i| i.selector.netns.is_some())
                    && !self.places.enters_namespaces
                {
                    let Resource { kind, id, .. } = &resource;
                    problem(format!(
                        "{kind} {id}: interface {}: this agent enters no other namespaces; set `follow_namespaces = true`",
                        elsewhere.selector
                    ));
                }
                match conflict(&inventory, &mut places, &resource) {
                    Some(words) => problem(words),
                    None => {
                        inventory.resources.insert(resource.id, resource);
                    }
                }
            }
        }
        self.add_found(&mut inventory, &mut places, problems);
        problems.extend(inventory.buckets.settle_claims());
        if matches!(inventory.buckets.place, BucketPlace::Directory(_)) && !inventory.buckets.owned.is_empty() {
            problems.push(
                "bucket: with `directory` in [buckets] the buckets of a contract are the directories below it; remove one \
                 of the two"
                    .to_owned(),
            );
        }
        inventory
    }
}

impl Loader {
    /// Adds what sources have found, in their order. What a file says, or a source before, goes before it.
    fn add_found(
        &mut self,
        inventory: &mut Inventory,
        places: &mut BTreeMap<Uuid, (Uuid, Contract)>,
        problems: &mut Vec<String>,
    ) {
        let mut known = Known::of(inventory.resources.values());
        let mut said = BTreeSet::new();
        for (n, spec) in self.sources.iter().enumerate() {
            let (nics, wrong) = self.board.get(n);
            problems.extend(wrong.iter().map(|words| format!("source {}: {words}", spec.name)));
            for nic in nics.iter() {
                match known.claim(nic, &spec.name) {
                    Some(Twice::Elsewhere(words)) => {
                        if !self.said.contains(&words) {
                            tracing::info!(source = spec.name, "inventory: {words}");
                        }
                        said.insert(words);
                        continue;
                    }
                    Some(Twice::Within(words)) => {
                        problems.push(format!("source {}: {words}", spec.name));
                        continue;
                    }
                    None => {}
                }
                let mut resource = match spec.resource(nic, problems) {
                    Ok(resource) => resource,
                    Err(unowned) => {
                        inventory.unowned.push(unowned);
                        continue;
                    }
                };
                // Its server may be in a file, with the data center it is in.
                if let Some((datacenter, contract)) = resource.server.and_then(|id| places.get(&id))
                    && *contract == resource.contract
                {
                    resource.datacenter = *datacenter;
                }
                match conflict(inventory, places, &resource) {
                    Some(words) => problems.push(format!("source {}: {words}", spec.name)),
                    None => drop(inventory.resources.insert(resource.id, resource)),
                }
            }
        }
        let unowned: BTreeSet<String> = inventory.unowned.iter().map(ToString::to_string).collect();
        for words in unowned.difference(&self.said) {
            tracing::warn!("inventory: {words}");
        }
        said.extend(unowned);
        self.said = said;
    }
}

/// Adds what a file says of buckets; returns what is wrong with it.
fn merge_buckets(buckets: &mut BucketRegistry, file: &File) -> Vec<String> {
    let mut problems = Vec::new();
    match file.buckets.as_ref().map(RawBuckets::check) {
        Some(Ok(_)) if buckets.place != BucketPlace::Configured => {
            problems.push("buckets: another file says where buckets are; remove one of the two".to_owned());
        }
        Some(Ok(place)) => buckets.place = place,
        Some(Err(words)) => problems.push(words),
        None => {}
    }
    let (owned, bad) = file.owned();
    problems.extend(bad);
    buckets.owned.extend(owned);
    let (contracts, bad) = file.contracts();
    problems.extend(bad);
    for (contract, reach) in contracts {
        match buckets.contracts.entry(contract) {
            Entry::Occupied(there) => {
                problems.push(format!("contract {}: it is there already; the first one counts", there.key()));
            }
            Entry::Vacant(free) => {
                free.insert(reach);
            }
        }
    }
    problems
}

/// Why a resource cannot be beside those that are there.
fn conflict(there: &Inventory, places: &mut BTreeMap<Uuid, (Uuid, Contract)>, new: &Resource) -> Option<String> {
    let what = format!("{} {}", new.kind, new.id);
    if there.resources.contains_key(&new.id) {
        return Some(format!("{what}: this id is there already; the first one counts"));
    }
    // A data center belongs to one contract, a server to one data center.
    for (id, place) in [
        (Some(new.datacenter), (new.datacenter, new.contract.clone())),
        (new.server, (new.datacenter, new.contract.clone())),
    ] {
        let Some(id) = id else { continue };
        if places.get(&id).is_some_and(|p| *p != place) {
            return Some(format!("{what}: {id} is in another data center or contract elsewhere in the inventory"));
        }
    }
    for id in [Some(new.datacenter), new.server].into_iter().flatten() {
        places.insert(id, (new.datacenter, new.contract.clone()));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use flowlog_model::{interface::Selector, rule::Side};

    use super::*;
    use crate::inventory::Kind;

    const NIC: &str = "\
[[nic]]
id = '00000000-0000-4000-8000-000000000001'
server = '00000000-0000-4000-8000-0000000000a1'
datacenter = '00000000-0000-4000-8000-0000000000d1'
contract = '31960002'
interface = { name = 'tap0' }
";

    fn uuid(n: u128) -> Uuid {
        Uuid::from_u128(0x0000_0000_0000_4000_8000_0000_0000_0000 + n)
    }

    fn loader(dir: &Path) -> Loader {
        Loader::new(Places {
            file: Some(dir.join("inventory.toml")),
            dir: Some(dir.join("inventory.d")),
            enters_namespaces: false,
        })
    }

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
        fs::write(path, text).expect("write");
    }

    #[test]
    fn drop_ins_name_buckets_of_contracts_and_what_is_wrong_with_one_does_not_harm_the_others() {
        let dir = tempfile::tempdir().expect("tempdir");
        let one = "[[bucket]]\nname = 'flows-a'\ncontract = '1'\n";
        write(dir.path().join("inventory.toml"), &format!("[buckets]\nregion = 'eu'\n{one}"));
        for (name, text, words) in [
            ("b", "[[bucket]]\nname = 'Flows'\ncontract = '1'\n", "bucket name `Flows`"),
            (
                "c",
                "[[bucket]]\nname = 'flows-c'\ncontract = '1'\nendpoint = 'https://x'\n",
                "needs a `credentials_file`",
            ),
            ("d", "[[contract]]\nid = '1'\nbuckets = { endpoint = 'https://x' }\n", "needs a `credentials_file`"),
            ("e", "[[bucket]]\nname = 'flows-a'\ncontract = '2'\n", "contracts 1 and 2 both have it"),
            ("f", "[buckets]\ndirectory = '/srv'\n", "another file says where buckets are"),
        ] {
            let file = dir.path().join(format!("inventory.d/{name}.toml"));
            write(file.clone(), text);
            let Loaded { inventory, problems } = loader(dir.path()).load();
            assert!(problems.iter().any(|p| p.contains(words)), "{words}: {problems:?}");
            let kept = inventory.buckets.has(&"1".parse().expect("contract"), "flows-a");
            assert_eq!(kept, name != "e", "{name}");
            fs::remove_file(file).expect("removed");
        }
    }

    #[test]
    fn a_file_and_drop_ins_in_toml_and_json_make_one_inventory() {
        let dir = tempfile::tempdir().expect("tempdir");
        write(dir.path().join("inventory.toml"), &format!("{NIC}[buckets]\nendpoint = 'https://s3.example.com'\n"));
        let gateway = r#"{"nat_gateway":[{"id":"00000000-0000-4000-8000-000000000002","datacenter":
            "00000000-0000-4000-8000-0000000000d1","contract":"31960002",
            "public_interfaces":[{"mac":"02:00:00:00:00:01"},{"index":7},{"name":"ext0"}]}]}"#;
        write(dir.path().join("inventory.d/b.json"), gateway);
        write(dir.path().join("inventory.d/.c.toml"), "not read");
        let loaded = loader(dir.path()).load();
        assert_eq!(loaded.problems, Vec::<String>::new());
        let resources = &loaded.inventory.resources;
        assert_eq!((resources[&uuid(1)].kind, resources[&uuid(1)].side), (Kind::Nic, Side::Guest));
        assert_eq!(resources[&uuid(1)].interfaces[0].selector, Selector::name("tap0"));
        let ids: Vec<&str> = resources[&uuid(2)].interfaces.iter().map(|i| i.id.as_str()).collect();
        let stem = "00000000-0000-4000-8000-000000000002";
        assert_eq!(ids, [format!("{stem}-020000000001"), format!("{stem}-7"), format!("{stem}-ext0")]);
        assert!(matches!(loaded.inventory.buckets.place, BucketPlace::S3(_)));
    }

    #[test]
    fn a_file_that_breaks_keeps_saying_what_it_said_and_one_that_goes_away_does_not() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("inventory.d/vm.toml");
        let mut loader = loader(dir.path());
        write(dir.path().join("inventory.toml"), "");
        write(file.clone(), NIC);
        assert_eq!(loader.load().inventory.resources.len(), 1);
        write(file.clone(), "[[nic]]\nid = 7\n");
        let broken = loader.load();
        assert!(broken.inventory.resources.len() == 1 && broken.problems[0].contains("still holds"), "{broken:?}");
        assert!(broken.problems[0].contains("vm.toml: line 2"), "{:?}", broken.problems);
        write(file.clone(), &NIC.replace("tap0", "tap1"));
        let mended = loader.load();
        assert!(mended.problems.is_empty());
        assert_eq!(mended.inventory.resources[&uuid(1)].interfaces[0].selector, Selector::name("tap1"));
        fs::remove_file(file).expect("remove");
        assert!(loader.load().inventory.resources.is_empty());
    }

    #[test]
    fn files_that_others_can_write_are_not_read_and_what_they_said_before_still_holds() {
        let chmod = |path: PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
        let dir = tempfile::tempdir().expect("tempdir");
        let main = dir.path().join("inventory.toml");
        let drop_ins = dir.path().join("inventory.d");
        let other = NIC.replace("000000000001", "000000000009");
        let mut loader = loader(dir.path());
        write(main.clone(), NIC);
        write(drop_ins.join("a.toml"), &other);
        assert_eq!(loader.load().inventory.resources.len(), 2);
        // Each in turn; what is in them by then is somebody else's.
        for (path, bad, good, words) in [
            (main.clone(), 0o666, 0o644, "chmod go-w"),
            (drop_ins.join("a.toml"), 0o664, 0o644, "mode 0664 lets others than its owner write to it"),
            (drop_ins.clone(), 0o777, 0o755, "what was in it before still holds"),
        ] {
            let before = fs::read_to_string(&path).ok();
            chmod(path.clone(), bad);
            let file = if path.is_dir() { path.join("evil.toml") } else { path.clone() };
            fs::write(&file, "").expect("write");
            let found = loader.load();
            assert_eq!(found.inventory.resources.len(), 2, "{found:?}");
            assert!(found.problems.len() == 1 && found.problems[0].contains(words), "{:?}", found.problems);
            assert!(found.problems[0].contains("still holds"), "{:?}", found.problems);
            chmod(path.clone(), good);
            if let Some(text) = before {
                write(path, &text);
            }
            let found = loader.load();
            assert_eq!((found.inventory.resources.len(), found.problems), (2, Vec::new()));
        }
    }

    #[test]
    fn what_is_wrong_with_buckets_costs_no_resource() {
        let dir = tempfile::tempdir().expect("tempdir");
        write(dir.path().join("inventory.toml"), &format!("{NIC}\n[buckets]\ndirectory = '/d'\nregion = 'r'"));
        let loaded = loader(dir.path()).load();
        assert_eq!(loaded.inventory.resources.len(), 1);
        assert!(loaded.problems[0].contains("give either `endpoint`, or `directory`"), "{:?}", loaded.problems);
    }

    #[test]
    fn what_is_wrong_with_one_resource_is_said_and_costs_no_other() {
        let other = NIC.replace("000000000001", "000000000009");
        for (bad, words) in [
            (NIC.to_owned(), "this id is there already"),
            (other.replace("31960002", "31960003"), "is in another data center or contract"),
            (other.replace("0000000000d1", "0000000000d2"), "is in another data center or contract"),
            (other.replace("'tap0'", "'a/b'"), "interface name `a/b`"),
            (other.replace("name = 'tap0'", "index = 0"), "indexes begin at 1"),
            (other.replace("31960002", "3/4"), "line 5: contract `3/4`"),
            (format!("{other}colour = 1"), "unknown field `colour`"),
            (format!("{other}\n[buckets]\nendpoint = 'https://s'\nacls = false"), "unknown field `acls`"),
            (format!("{other}\n[[bucket]]\nname = 'flows-b'\ncontract = '7'\nregoin = 'r'"), "unknown field `regoin`"),
            (format!("{other}\n[[contract]]\nid = '7'\nbuckets = {{ pathstyle = true }}"), "unknown field `pathstyle`"),
        ] {
            let dir = tempfile::tempdir().expect("tempdir");
            write(dir.path().join("inventory.toml"), NIC);
            write(dir.path().join("inventory.d/bad.toml"), &bad);
            let loaded = loader(dir.path()).load();
            assert_eq!(loaded.inventory.resources.len(), 1, "{bad}");
            assert!(loaded.problems.len() == 1 && loaded.problems[0].contains(words), "{words}: {:?}", loaded.problems);
        }
    }
}
