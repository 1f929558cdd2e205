//! The program's entry: everything is in the library.

fn main() -> std::process::ExitCode {
    kvm_clone::cli::main()
}
