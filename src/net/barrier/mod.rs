//! Who reaches whom, decided by programs of the kernel's at network devices (`barrier.c`) and the maps that they look into.
//!
//! They are kept in a filesystem of their own below `SPARK_RUN`, and as long as the devices that they are at.

use std::net::IpAddr;
use std::path::PathBuf;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use aya::programs::SchedClassifier;
use aya::programs::tc::{self, NlOptions, TcAttachOptions, TcAttachType};

use super::Member;
use crate::domain::subnet::{Cidr, Transit};
use crate::error::{Error, Result};
use crate::sys;

/// The programs, as `build.rs` has compiled them. The loader reads them as they lie, in words.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/barrier.o"));

/// Which programs these are.
pub(super) const VERSION: &str = env!("BARRIER_VERSION");

const MAPS: [&str; 7] = ["sparks", "places", "egress", "closed", "settings", "beyond", "answers"];
const PROGRAMS: [&str; 4] = ["from_spark", "from_host", "from_router", "to_router"];

/// An address of either family; one of IPv4 is `::ffff:a.b.c.d`.
type Address = [u8; 16];

fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// Bits of a network as the maps count them.
fn bits(net: &Cidr) -> u32 {
    u32::from(net.prefix) + if net.address.is_ipv4() { 96 } else { 0 }
}

/// `struct spark`, `struct place`, `struct reach` without its length, `struct settings`: as the programs have them in memory.
type Spark = [u8; 52];
type Place = [u8; 20];
type Reach = [u8; 24];
type Settings = [u8; 80];

/// Puts parts of a structure one behind the other.
fn packed<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut all = [0; N];
    let mut rest = &mut all[..];
    for part in parts {
        let (here, behind) = rest.split_at_mut(part.len());
        here.copy_from_slice(part);
        rest = behind;
    }
    all
}

const ALLOW_HOST: u32 = 1;
const LIMITED: u32 = 2;

/// Whom a network is closed for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    ForAll = 0,
    /// With `--allow-host` it is open.
    ForMost = 1,
}

fn failed(what: &'static str) -> impl FnOnce(String) -> Error {
    move |why| Error::Network {
        what: format!("cannot {what}: {why}"),
        hint: Some("see what this host lacks with `spark doctor`".into()),
    }
}

/// An error with what it comes from: the libraries say the reason only there.
fn reason(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(e) = next {
        text = format!("{text}: {e}");
        next = e.source();
    }
    text
}

/// The programs of an installation, and their maps.
#[derive(Debug, Clone)]
pub(super) struct Barrier {
    dir: PathBuf,
}

impl Barrier {
    pub(super) fn at(dir: PathBuf) -> Barrier {
        Barrier { dir }
    }

    /// Whether it is there.
    pub(super) fn is_there(&self) -> bool {
        self.dir.join(PROGRAMS[0]).exists()
    }

    /// Gives all programs to the kernel, with maps that are as good as empty.
    pub(super) fn make(&self, transit: &Transit, gateway: IpAddr) -> Result<()> {
        self.remove()?;
        std::fs::create_dir_all(&self.dir).map_err(Error::io("create", &self.dir))?;
        sys::mount::bpf(&self.dir).map_err(Error::io("mount", &self.dir))?;
        let load = || -> std::result::Result<(), Box<dyn std::error::Error>> {
            let mut all = aya::EbpfLoader::new().load(OBJECT)?;
            for name in PROGRAMS {
                let program: &mut SchedClassifier =
                    all.program_mut(name).ok_or("a program is missing")?.try_into()?;
                program.load()?;
                program.pin(self.dir.join(name))?;
            }
            for name in MAPS {
                all.map(name).ok_or("a map is missing")?.pin(self.dir.join(name))?;
            }
            Ok(())
        };
        load().map_err(|e| failed("load the programs that keep sparks apart")(reason(&*e)))?;
        let at4 = |n| address(transit.v4(n).into());
        let at6 = |n| address(transit.v6(n).into());
        let settings: Settings = packed(&[&address(gateway), &at4(2), &at6(2), &at4(3), &at6(3)]);
        self.array::<Settings>("settings")?.set(0, settings, 0).map_err(wrong)?;
        for net in super::closed::networks() {
            self.close(&net, Closed::ForMost)?;
        }
        Ok(())
    }

    /// Takes them out of the filesystem: those at devices stay as long as these.
    pub(super) fn remove(&self) -> Result<()> {
        sys::mount::detach_all(&self.dir).map_err(Error::io("unmount", &self.dir))?;
        match std::fs::remove_dir(&self.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &self.dir)(e)),
            _ => Ok(()),
        }
    }

    /// Closes a network to sparks.
    pub(super) fn close(&self, net: &Cidr, whom: Closed) -> Result<()> {
        let mut map = LpmTrie::<_, Address, u32>::try_from(self.map("closed")?).map_err(wrong)?;
        map.insert(&Key::new(bits(net), address(net.address)), whom as u32, 0).map_err(wrong)
    }

    /// Opens a network again.
    pub(super) fn open(&self, net: &Cidr) -> Result<()> {
        let mut map = LpmTrie::<_, Address, u32>::try_from(self.map("closed")?).map_err(wrong)?;
        gone(map.remove(&Key::new(bits(net), address(net.address))))
    }

    /// Lets sparks leave by these devices of the host, besides those of the way to everywhere, and by no others.
    pub(super) fn let_leave_by(&self, devices: &[u32]) -> Result<()> {
        let mut map: HashMap<_, u32, u32> = self.hash("beyond")?;
        let had: Vec<u32> = map.keys().filter_map(std::result::Result::ok).collect();
        for device in had.iter().filter(|device| !devices.contains(device)) {
            gone(map.remove(device))?;
        }
        devices
            .iter()
            .filter(|device| !had.contains(device))
            .try_for_each(|device| map.insert(device, 1, 0).map_err(wrong))
    }

    /// Lets a spark in, by the number of its device in the router's namespace.
    pub(super) fn admit(&self, member: &Member, device: u32) -> Result<()> {
        let project = member.project_id.bytes();
        if let Some(allowed) = &member.egress {
            let mut map = LpmTrie::<_, Reach, u32>::try_from(self.map("egress")?).map_err(wrong)?;
            for rule in allowed {
                map.insert(&reach(device, rule), 1, 0).map_err(wrong)?;
            }
        }
        let flag = |on, flag| if on { flag } else { 0 };
        let flags = flag(member.allow_host, ALLOW_HOST) | flag(member.egress.is_some(), LIMITED);
        let at = [member.v4.into(), member.v6.into()].map(address);
        let spark: Spark = packed(&[&at[0], &at[1], &project, &flags.to_ne_bytes()]);
        self.hash::<u32, Spark>("sparks")?.insert(device, spark, 0).map_err(wrong)?;
        let mut places: HashMap<_, Address, Place> = self.hash("places")?;
        let place: Place = packed(&[&project, &device.to_ne_bytes()]);
        at.iter().try_for_each(|at| places.insert(at, place, 0).map_err(wrong))
    }

    /// Takes a spark out.
    pub(super) fn dismiss(&self, member: &Member) -> Result<()> {
        let mut places: HashMap<_, Address, Place> = self.hash("places")?;
        let at = [member.v4.into(), member.v6.into()].map(address);
        let Ok(place) = places.get(&at[0], 0) else { return Ok(()) };
        let device = device_of(place);
        let mut sparks: HashMap<_, u32, Spark> = self.hash("sparks")?;
        gone(sparks.remove(&device))?;
        at.iter().try_for_each(|at| gone(places.remove(at)))?;
        let mut map = LpmTrie::<_, Reach, u32>::try_from(self.map("egress")?).map_err(wrong)?;
        let rules = member.egress.as_deref().unwrap_or_default();
        rules.iter().try_for_each(|rule| gone(map.remove(&reach(device, rule))))
    }

    /// The numbers of the devices that something is known of.
    pub(super) fn devices(&self) -> Result<Vec<u32>> {
        let sparks: HashMap<_, u32, Spark> = self.hash("sparks")?;
        let places: HashMap<_, Address, Place> = self.hash("places")?;
        let placed = places.iter().filter_map(std::result::Result::ok).map(|(_, place)| device_of(place));
        let mut all: Vec<u32> = sparks.keys().filter_map(std::result::Result::ok).chain(placed).collect();
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// Forgets all that is known of devices, by their numbers.
    pub(super) fn forget(&self, devices: &[u32]) -> Result<()> {
        if devices.is_empty() {
            return Ok(());
        }
        let mut sparks: HashMap<_, u32, Spark> = self.hash("sparks")?;
        devices.iter().try_for_each(|device| gone(sparks.remove(device)))?;
        let mut places: HashMap<_, Address, Place> = self.hash("places")?;
        let all: Vec<_> = places.iter().filter_map(std::result::Result::ok).collect();
        let of_these = all.iter().filter(|(_, place)| devices.contains(&device_of(*place)));
        of_these.into_iter().try_for_each(|(at, _)| gone(places.remove(at)))?;
        let mut egress = LpmTrie::<_, Reach, u32>::try_from(self.map("egress")?).map_err(wrong)?;
        let rules: Vec<_> = egress.keys().filter_map(std::result::Result::ok).collect();
        let device = |rule: &Key<Reach>| {
            let [a, b, c, d, ..] = rule.data();
            u32::from_ne_bytes([a, b, c, d])
        };
        rules
            .iter()
            .filter(|rule| devices.contains(&device(rule)))
            .try_for_each(|rule| gone(egress.remove(rule)))
    }

    /// Has a program look at what a device of this thread's namespace takes in.
    pub(super) fn watch_in(&self, device: &str, program: &str) -> Result<()> {
        match tc::qdisc_add_clsact(device) {
            Err(e) if !e.to_string().contains("File exists") => {
                return Err(failed("prepare a network device")(reason(&e)));
            }
            _ => {}
        }
        self.watch(device, program, TcAttachType::Ingress)
    }

    /// And at what it sends. [`Self::watch_in`] comes first.
    pub(super) fn watch_out(&self, device: &str, program: &str) -> Result<()> {
        self.watch(device, program, TcAttachType::Egress)
    }

    fn watch(&self, device: &str, program: &str, way: TcAttachType) -> Result<()> {
        let attach = || -> std::result::Result<(), Box<dyn std::error::Error>> {
            let mut program = SchedClassifier::from_pin(self.dir.join(program))?;
            // Not by a link, which would end with this process.
            let options = TcAttachOptions::Netlink(NlOptions { priority: 1, ..NlOptions::default() });
            let id = program.attach_with_options(device, way, options)?;
            // It stays for as long as the device.
            std::mem::forget(program.take_link(id)?);
            Ok(())
        };
        attach().map_err(|e| failed("watch a network device")(reason(&*e)))
    }

    fn map(&self, name: &str) -> Result<Map> {
        let data = MapData::from_pin(self.dir.join(name)).map_err(wrong)?;
        Map::from_map_data(data).map_err(wrong)
    }

    fn hash<K: aya::Pod, V: aya::Pod>(&self, name: &str) -> Result<HashMap<MapData, K, V>> {
        HashMap::try_from(self.map(name)?).map_err(wrong)
    }

    fn array<V: aya::Pod>(&self, name: &str) -> Result<Array<MapData, V>> {
        Array::try_from(self.map(name)?).map_err(wrong)
    }
}

/// The device of a place.
fn device_of([.., a, b, c, d]: Place) -> u32 {
    u32::from_ne_bytes([a, b, c, d])
}

fn reach(device: u32, (net, port): &(Cidr, Option<u16>)) -> Key<Reach> {
    let port = port.unwrap_or_default().to_be_bytes();
    // The device and the port count whole.
    Key::new(64 + bits(net), packed(&[&device.to_ne_bytes(), &port, &[0; 2], &address(net.address)]))
}

#[expect(clippy::needless_pass_by_value, reason = "it is what errors are mapped with")]
fn wrong(e: MapError) -> Error {
    failed("say what sparks may reach")(reason(&e))
}

/// What is not there is as well as removed.
fn gone(removed: std::result::Result<(), MapError>) -> Result<()> {
    match removed {
        Err(MapError::SyscallError(e)) if e.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        other => other.map_err(wrong),
    }
}
