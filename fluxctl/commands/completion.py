"""`fluxctl completion bash|zsh|fish`: a script for the shell, which asks `flux __complete` while somebody types."""

from __future__ import annotations

from fluxctl.options import Command
from fluxctl.problem import usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fluxctl.options import Arguments

_BASH = """\
# flux and fluxctl, for bash. In ~/.bashrc: eval "$(fluxctl completion bash)"
_flux_complete() {
  local line
  COMPREPLY=()
  while IFS= read -r line; do
    COMPREPLY+=("${line%%$'\\t'*}")
  done < <("$1" __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o default -F _flux_complete flux fluxctl
"""
_ZSH = """\
#compdef flux fluxctl
# flux and fluxctl, for zsh. In ~/.zshrc, after compinit: eval "$(fluxctl completion zsh)"
_flux_complete() {
  local line
  local -a values shown
  while IFS= read -r line; do
    values+=("${line%%$'\\t'*}")
    shown+=("${line/$'\\t'/  -- }")
  done < <("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)
  if (( $#values )); then
    compadd -l -d shown -a values
  else
    _files
  fi
}
compdef _flux_complete flux fluxctl
"""
_FISH = """\
# flux and fluxctl, for fish: fluxctl completion fish > ~/.config/fish/completions/fluxctl.fish
function __flux_complete
    set -l words (commandline -opc)
    $words[1] __complete $words[2..-1] (commandline -ct) 2>/dev/null
end
complete -c flux -f -a '(__flux_complete)'
complete -c fluxctl -f -a '(__flux_complete)'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def completion(arguments: Arguments) -> int:
    shell = arguments.positionals[0]
    if shell not in _SCRIPTS:
        raise usage(f"There are completions for bash, zsh and fish, not for {shell!r}.")
    print(_SCRIPTS[shell], end="")
    return 0


COMMANDS = {"completion": Command(completion, positionals=("SHELL",))}
