"""vLLM's `vllm bench serve` without the rest of vLLM's command line, which imports its server."""
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
p = FlexibleArgumentParser()
add_cli_args(p)
main(p.parse_args())
