# The formula for Homebrew on Linux. release/build.sh fills in what stands between @ signs.
class Microgranite < Formula
  desc "IBM Granite at eight bits behind an HTTP port"
  homepage "@URL@"
  version "@VERSION@"
  license "Apache-2.0"

  # It reads /proc and Linux's control groups.
  depends_on :linux

  on_intel do
@X86_64@
  end

  on_arm do
@AARCH64@
  end

  def install
    if File.exist?("Cargo.toml")
      # The source archive has no commit to take the id of the build from.
      ENV["MICROGRANITE_BUILD"] = "@BUILD@"
      system "cargo", "install", *std_cargo_args
      mkdir "man"
      system bin/"microgranite", "man", "--output", "man"
    else
      bin.install "microgranite"
    end
    man1.install Dir["man/*.1"]
    generate_completions_from_executable(bin/"microgranite", "completions")
  end

  service do
    run [opt_bin/"microgranite", "serve"]
    keep_alive crashed: true
    log_path var/"log/microgranite.log"
    error_log_path var/"log/microgranite.log"
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/microgranite --version")
    # A model that does not exist is refused with the exit code for that.
    shell_output("#{bin}/microgranite inspect #{testpath}/no-such-model 2>&1", 66)
  end
end
