#!/bin/sh
# Sets up a fresh machine and runs tok: sh tasks/dev/up.sh demo | test
# Installs what is missing and says so: Deno 2.9 or later, and on Debian and Ubuntu (as root) a Vulkan loader and the software
# driver where no Vulkan adapter answers. Elsewhere it prints the one command to type.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
what=${1:-}
case "$what" in demo | test) ;; *) echo "usage: sh tasks/dev/up.sh demo|test" >&2; exit 2 ;; esac

say() { echo "up: $*" >&2; }

deno_is_new() { command -v deno >/dev/null 2>&1 && deno eval 'const [a, b] = Deno.version.deno.split(".").map(Number); Deno.exit(a > 2 || (a === 2 && b >= 9) ? 0 : 1)' 2>/dev/null; }
PATH="$HOME/.deno/bin:$HOME/.tok/npm/bin:$PATH"
export PATH
if ! deno_is_new; then
  if command -v npm >/dev/null 2>&1; then
    say "installing Deno 2.9.6 from npm"
    npm install -g --no-fund --no-audit deno@2.9.6 >/dev/null 2>&1 ||
      npm install -g --no-fund --no-audit --prefix "$HOME/.tok/npm" deno@2.9.6 >/dev/null
  else
    say "installing Deno with its own installer"
    curl -fsSL https://deno.land/install.sh | sh -s -- -y >/dev/null
  fi
  hash -r 2>/dev/null || true
  deno_is_new || { say "Deno 2.9 or later could not be installed; see https://docs.deno.com/runtime/getting_started/installation"; exit 1; }
fi

export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}"
# On Linux only Vulkan counts: an adapter that answers through OpenGL compiles some kernels for twenty seconds each.
case "$(uname)" in Linux) backend=vulkan ;; Darwin) backend=metal ;; *) backend=dx12 ;; esac
adapter() { DENO_WEBGPU_BACKEND=$backend deno eval 'Deno.exit(await navigator.gpu.requestAdapter() ? 0 : 1)' >/dev/null 2>&1; }
if ! adapter; then
  packages="libvulkan1 mesa-vulkan-drivers"
  if [ "$(uname)" = Linux ] && command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then
      say "installing $packages"
      export DEBIAN_FRONTEND=noninteractive
      apt-get install -y $packages >/dev/null 2>&1 || { apt-get update >/dev/null && apt-get install -y $packages >/dev/null; }
    else
      say "no Vulkan adapter answers; type: sudo apt-get install -y $packages"
      exit 1
    fi
  else
    say "no graphics adapter answers; install a Vulkan driver, then type: deno run -A $top/main.ts doctor"
    exit 1
  fi
  adapter || { say "still no adapter answers; type: deno run -A $top/main.ts doctor"; exit 1; }
fi

cd "$top"
if [ "$what" = test ]; then
  exec deno task test
else
  exec deno task demo
fi
