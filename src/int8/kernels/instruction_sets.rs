//! Compiles portable functions once for each instruction set.

/// Declares a table `Functions` of the listed functions of the module, and one table for each set of registers:
/// `PORTABLE`, `AVX2` and `AVX512`. The functions of a table may be called only on a CPU that has its features.
///
/// Each body must be `#[inline(always)]`: it becomes part of a wrapper that has the features, so that the compiler
/// vectorizes it with them.
macro_rules! for_each_instruction_set {
    ($($name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)?;)*) => {
        /// The functions of this module, compiled for one instruction set. They may be called only on a CPU that has it.
        #[derive(Clone, Copy)]
        pub(super) struct Functions {
            $(pub $name: unsafe fn($($type),*) $(-> $out)?,)*
        }

        pub(super) const PORTABLE: Functions = Functions { $($name,)* };

        #[cfg(target_arch = "x86_64")]
        pub(super) const AVX2: Functions = {
            $(
                #[target_feature(enable = "avx2,fma")]
                fn $name($($arg: $type),*) $(-> $out)? {
                    self::$name($($arg),*)
                }
            )*
            Functions { $($name,)* }
        };

        #[cfg(target_arch = "x86_64")]
        pub(super) const AVX512: Functions = {
            $(
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
                fn $name($($arg: $type),*) $(-> $out)? {
                    self::$name($($arg),*)
                }
            )*
            Functions { $($name,)* }
        };
    };
}
