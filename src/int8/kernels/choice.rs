//! Which kernels this build has, which of them this CPU can run, and which one computes.

use std::sync::OnceLock;

use super::Kernel;

/// A kernel of this build, with the CPU features it needs and whether this CPU has each of them.
pub(super) struct Candidate {
    /// Must not be handed out before every feature was detected.
    pub(super) kernel: Kernel,
    pub(super) features: fn() -> Vec<(&'static str, bool)>,
}

/// Every kernel of this build, fastest first, the scalar one last.
const ALL: &[Candidate] = &[
    #[cfg(target_arch = "x86_64")]
    super::amx_int8::CANDIDATE,
    #[cfg(target_arch = "x86_64")]
    super::avx512_vnni::CANDIDATE,
    #[cfg(target_arch = "x86_64")]
    super::avx_vnni::CANDIDATE,
    #[cfg(target_arch = "x86_64")]
    super::avx512_bw::CANDIDATE,
    #[cfg(target_arch = "x86_64")]
    super::avx2::CANDIDATE,
    #[cfg(target_arch = "aarch64")]
    super::neon_i8mm::CANDIDATE,
    #[cfg(target_arch = "aarch64")]
    super::neon_dotprod::CANDIDATE,
    #[cfg(target_arch = "aarch64")]
    super::neon::CANDIDATE,
    super::scalar::CANDIDATE,
];

impl Candidate {
    /// The features that this CPU lacks.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        let absent = |(name, there): (&'static str, bool)| (!there).then_some(name);
        (self.features)().into_iter().filter_map(absent).collect()
    }
}

/// Every kernel this CPU can run, fastest first, the scalar one last.
pub fn available() -> Vec<Kernel> {
    let usable = ALL
        .iter()
        .filter(|candidate| candidate.missing().is_empty());
    usable.map(|candidate| candidate.kernel).collect()
}

/// The kernel of this process, once it is known.
static CHOSEN: OnceLock<Kernel> = OnceLock::new();

/// The kernel to compute with: the one that was chosen with [`choose`], or the fastest one of this CPU.
///
/// Debug builds, such as tests, take the name from the variable `MICROGRANITE_KERNEL` as well, so that the whole suite can
/// run on each instruction set that the CPU has.
///
/// # Panics
/// In debug builds, if the variable does not name a kernel of this CPU.
pub fn best() -> Kernel {
    *CHOSEN.get_or_init(|| {
        let name = if cfg!(debug_assertions) {
            std::env::var("MICROGRANITE_KERNEL").ok()
        } else {
            None
        };
        match name.filter(|name| !name.is_empty()) {
            Some(name) => named(&name).unwrap_or_else(|problem| panic!("{problem}")),
            None => available()[0],
        }
    })
}

/// Makes [`best`] return the kernel `name` from now on. Call it before anything else computes.
///
/// # Errors
/// In words, if this CPU cannot run the kernel, or if another one is in use already.
pub fn choose(name: &str) -> Result<(), String> {
    let kernel = named(name)?;
    let chosen = CHOSEN.get_or_init(|| kernel);
    match chosen.name == name {
        true => Ok(()),
        false => Err(format!("{} is in use already", chosen.name)),
    }
}

/// The kernel `name`, or the reason why there is none.
pub(super) fn named(name: &str) -> Result<Kernel, String> {
    let usable = available().into_iter().find(|kernel| kernel.name == name);
    usable.ok_or_else(|| {
        let lacks = survey().into_iter().find(|(known, _)| *known == name);
        let reason = lacks.and_then(|(_, reason)| reason);
        reason.unwrap_or_else(|| format!("{name} is not a kernel of this build"))
    })
}

/// Every kernel of this build, with the reason why this CPU cannot run it, if it cannot.
pub fn survey() -> Vec<(&'static str, Option<String>)> {
    let why = |missing: Vec<&str>| {
        (!missing.is_empty()).then(|| format!("this CPU lacks {}", missing.join(", ")))
    };
    ALL.iter()
        .map(|candidate| (candidate.kernel.name, why(candidate.missing())))
        .collect()
}
