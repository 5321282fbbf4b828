# Installs a formula's archive as Homebrew would, for tests without Homebrew:
#
#   ruby tests/deploy/formula.rb FORMULA PREFIX [arm]
#
# With the last word it takes the formula's branch for ARM, whose program needs an emulator (`tests/aarch64/run.sh binfmt`).
# It knows the part of Homebrew's language that the formula uses, takes the archive from a file:// address, compares its
# digest, and runs `install` and `test`. Anything else in the formula is an error.
require "digest"
require "fileutils"
require "open3"
require "pathname"
require "tmpdir"
require "uri"

PREFIX = Pathname(ARGV.fetch(1)).expand_path

# Homebrew's additions to Pathname that the formula uses.
class Pathname
  def install(*files)
    mkpath
    files.flatten.each { |file| FileUtils.install(file, self, mode: File.stat(file).mode & 0o777) }
  end
end

class Formula
  attr_accessor :testpath

  class << self
    attr_reader :values

    def inherited(formula)
      super
      formula.instance_variable_set(:@values, {})
    end

    [:desc, :homepage, :version, :license, :url, :sha256].each do |name|
      define_method(name) { |*value| value.empty? ? @values[name] : @values[name] = value.first }
    end

    def depends_on(what)
      raise "unknown requirement #{what}" unless [:linux].include?(what)
    end

    def on_intel
      yield unless ARGV[2] == "arm"
    end

    def on_arm
      yield if ARGV[2] == "arm"
    end

    def service(&block)
      @values[:service] = block
    end

    def test(&block)
      @values[:test] = block
    end
  end

  def version = self.class.version
  def prefix = PREFIX
  def bin = PREFIX/"bin"
  def opt_bin = bin
  def var = PREFIX/"var"
  def man1 = PREFIX/"share/man/man1"

  def generate_completions_from_executable(program, command)
    { "bash" => "etc/bash_completion.d/microgranite", "zsh" => "share/zsh/site-functions/_microgranite",
      "fish" => "share/fish/vendor_completions.d/microgranite.fish" }.each do |shell, path|
      text, status = Open3.capture2(program.to_s, command, shell)
      raise "no completions for #{shell}" unless status.success? && !text.empty?

      (PREFIX/path).dirname.mkpath
      (PREFIX/path).write(text)
    end
  end

  def shell_output(command, expected = 0)
    text, status = Open3.capture2(command)
    raise "#{command}: exit code #{status.exitstatus}, not #{expected}: #{text}" unless status.exitstatus == expected

    text
  end

  def assert_match(part, text)
    raise "#{text} does not contain #{part}" unless text.include?(part)
  end


  def run(command)
    raise command.inspect unless command.first == bin/"microgranite"
  end

  def keep_alive(**) = nil
  def log_path(_path) = nil
  def error_log_path(_path) = nil
end

load ARGV.fetch(0)
values = Microgranite.values
archive = URI(values.fetch(:url)).path
digest = Digest::SHA256.file(archive).hexdigest
raise "the digest of #{archive} is #{digest}" unless digest == values.fetch(:sha256)

formula = Microgranite.new
Dir.mktmpdir do |folder|
  raise "cannot unpack" unless system("tar", "-xf", archive, "-C", folder, "--strip-components=1")

  Dir.chdir(folder) { formula.install }
  formula.testpath = folder
  formula.instance_eval(&values.fetch(:service))
  formula.instance_eval(&values.fetch(:test))
end
raise "no manual pages" if Dir[PREFIX/"share/man/man1/microgranite*.1"].length < 2
