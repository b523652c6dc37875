// Owns: `millrace completion SHELL`: a script that completes commands, and the names of packages that are here.
import { Argument, Command } from "commander";

/** Commands whose arguments are packages. */
const takesPackage = "run|serve|show|pull|plan|push|stop|cp|rm|inspect|tokenize|render|convert";
const names =
  "millrace list --json 2>/dev/null | tr ',{' '\\n\\n' | sed -n 's/^\"name\":\"\\([^\"]*:[^\"]*\\)\"$/\\1/p'";

const scripts: Readonly<Record<string, (commands: readonly string[]) => string>> = {
  bash: (commands) => `_millrace() {
  local word=\${COMP_WORDS[COMP_CWORD]}
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "${commands.join(" ")}" -- "$word"))
  elif [[ "\${COMP_WORDS[1]}" =~ ^(${takesPackage})$ ]]; then
    COMPREPLY=($(compgen -W "$(${names})" -- "$word") $(compgen -f -- "$word"))
  fi
}
COMP_WORDBREAKS=\${COMP_WORDBREAKS//:}
complete -F _millrace millrace`,
  zsh: (commands) => `#compdef millrace
_millrace() {
  if (( CURRENT == 2 )); then
    compadd ${commands.join(" ")}
  elif [[ \${words[2]} =~ '^(${takesPackage})$' ]]; then
    compadd -- \${(f)"$(${names})"}
    _files
  fi
}
compdef _millrace millrace`,
  fish: (commands) => `complete -c millrace -f -n __fish_use_subcommand -a '${commands.join(" ")}'
complete -c millrace -n 'string match -qr "^(${takesPackage})$" -- (commandline -opc)[2]' -a '(${names})'`,
};

export function command(): Command {
  return new Command("completion")
    .description("Print a script that completes commands and package names in your shell.")
    .addArgument(new Argument("<shell>").choices(Object.keys(scripts)))
    .addHelpText("after", "\nExamples:\n  source <(millrace completion bash)\n  millrace completion fish | source")
    .action((shell: string, _flags: object, own: Command) => {
      const commands = own.parent!.commands.map((one) => one.name());
      console.log(scripts[shell](commands));
    });
}
