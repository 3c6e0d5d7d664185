"""`make mutate`: one-line bugs, each of which a named test must notice.

Every mutation is made in a temporary copy of the project, where only its test is run: it must fail there, and pass where nothing was
changed. tests/project/test_mutations.py checks that no entry has gone stale. Usage: python tests/mutations.py [NAME...]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("gym_servers", "environments", "curriculum", "genrm", "rl_trainer", "tests", "pyproject.toml")
TRAINER = "tests/rl_trainer"
CURRICULUM = "tests/curriculum"


@dataclass(frozen=True)
class Mutation:
    """`old`, which stands once in `file`, becomes `new`; then `test` must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = (
    Mutation(
        "importance weight dropped",
        "rl_trainer/loss.py",
        "weights.weight * objective, zero",
        "objective, zero",
        f"{TRAINER}/test_train_loss.py::test_loss_and_gradient_equal_the_reference",
    ),
    Mutation(
        "clip bounds swapped",
        "rl_trainer/loss.py",
        "rho.clamp(1 - low, 1 + high)",
        "rho.clamp(1 - high, 1 + low)",
        f"{TRAINER}/test_train_loss.py::test_loss_and_gradient_equal_the_reference",
    ),
    Mutation(
        "KL without the gradient through its ratio",
        "rl_trainer/loss.py",
        "ratio = torch.where(keep, lp - lp_gen, zero).exp()",
        "ratio = torch.where(keep, lp - lp_gen, zero).exp().detach()",
        f"{TRAINER}/test_train_loss.py::test_loss_and_gradient_equal_the_reference",
    ),
    Mutation(
        "masked by multiplication",
        "rl_trainer/loss.py",
        "(torch.where(mask, x, zero) for x in (lp,",
        "(x * mask for x in (lp,",
        f"{TRAINER}/test_train_loss.py::test_masked_slots_may_hold_nan_and_inf",
    ),
    Mutation(
        "mask shifted by one",
        "rl_trainer/packing.py",
        "index_of[i][where - 1]",
        "index_of[i][where]",
        f"{TRAINER}/test_train_packing.py::test_packed_targets_are_the_sampled_tokens_with_their_own_figures",
    ),
    Mutation(
        "attention across packed sequences",
        "rl_trainer/packing.py",
        "own = slice(at, at + length)",
        "own = slice(at - 1, at + length - 1)",
        f"{TRAINER}/test_train_packing.py::test_a_shared_prompt_gives_the_log_probabilities_and_gradients_of_whole_segments",
    ),
    Mutation(
        "a branch sees its own future",
        "rl_trainer/packing.py",
        ".tril(trunk)",
        ".tril(trunk + length)",
        f"{TRAINER}/test_train_packing.py::test_a_shared_prompt_gives_the_log_probabilities_and_gradients_of_whole_segments",
    ),
    Mutation(
        "a shared prompt's last token predicts one too early",
        "rl_trainer/packing.py",
        "stem = np.arange(at, at + trunk)",
        "stem = np.arange(at, at + trunk) - 1",
        f"{TRAINER}/test_train_packing.py::test_packed_targets_are_the_sampled_tokens_with_their_own_figures",
    ),
    Mutation(
        "no temperature in the trainer",
        "rl_trainer/logprobs.py",
        "logits = (hidden[part].to(dtype) @ table.T).to(wide) / temperature",
        "logits = (hidden[part].to(dtype) @ table.T).to(wide)",
        f"{TRAINER}/test_train_packing.py::test_ratio_is_one_before_the_first_update_at_every_temperature",
    ),
    Mutation(
        "N per micro-batch",
        "rl_trainer/policy.py",
        "                    divisor,\n",
        "                    float(packed.targets.numel()),\n",
        f"{TRAINER}/test_train_policy.py::test_gradient_is_the_same_under_every_split",
    ),
    Mutation(
        "sequence-masked tokens left in N",
        "rl_trainer/policy.py",
        "self._apply(total / kept, index)",
        "self._apply(1.0, index)",
        f"{TRAINER}/test_train_reference.py::test_loss_and_gradient_of_the_second_of_two_steps[default]",
    ),
    Mutation(
        "sequence mask not in the books",
        "rl_trainer/step_metrics.py",
        '"n": kept,',
        '"n": count,',
        f"{TRAINER}/test_train_policy.py::test_n_metrics_and_books",
    ),
    Mutation(
        "old log-probabilities taken anew at every step",
        "rl_trainer/policy.py",
        "old = lp.detach() if lp_old is None else lp_old[packed.members]",
        "old = lp.detach()",
        f"{TRAINER}/test_train_reference.py::test_loss_and_gradient_of_the_second_of_two_steps[clip]",
    ),
    Mutation(
        "router not frozen",
        "rl_trainer/policy.py",
        "            parameter.requires_grad_(False)\n",
        "",
        f"{TRAINER}/test_train_policy.py::test_router_weights_are_frozen_but_gate_proj_is_not",
    ),
    Mutation(
        "warm-up off by one",
        "rl_trainer/options.py",
        "(step + 1) / self.warmup_steps",
        "step / self.warmup_steps",
        f"{TRAINER}/test_train_policy.py::test_n_metrics_and_books",
    ),
    Mutation(
        "standard deviation with ddof 0",
        "rl_trainer/advantages.py",
        "/ (count - 1)) + STD_EPSILON",
        "/ count) + STD_EPSILON",
        f"{TRAINER}/test_train_advantages.py::test_leave_one_out_by_hand",
    ),
    Mutation(
        "masked rollout in baseline and std",
        "rl_trainer/advantages.py",
        "valid + overlong if options.overlong_in_baseline else valid",
        "valid + overlong",
        f"{TRAINER}/test_train_advantages.py::test_an_invalid_rollout_moves_nobody",
    ),
    Mutation(
        "failed rollout in baseline and std",
        "rl_trainer/advantages.py",
        "        if outcome.failed:",
        "        if outcome.failed and outcome.reward is None:",
        f"{TRAINER}/test_train_advantages.py::test_an_invalid_rollout_moves_nobody",
    ),
    Mutation(
        "truncated rollout trained",
        "rl_trainer/advantages.py",
        "elif outcome.truncated and options.overlong_filtering:",
        "elif False:",
        f"{TRAINER}/test_train_advantages.py::test_a_group_with_one_valid_rollout_is_dropped",
    ),
    Mutation(
        "a failure is a reward of 0",
        "rl_trainer/batch.py",
        "rollout.reward, rollout.truncated, failed=rollout.failure is not None",
        "rollout.reward or 0.0, rollout.truncated, failed=False",
        f"{TRAINER}/test_loop_run.py::test_failures_leave_their_group_and_are_in_the_books",
    ),
    Mutation(
        "books not checked",
        "rl_trainer/batch.py",
        '    books.check({rollout_key(r): sampled_tokens(r) for r in rollouts}, n=int(trained["n"]))\n',
        "",
        f"{TRAINER}/test_loop_run.py::test_books_that_do_not_balance_name_the_rollout",
    ),
    Mutation(
        "a tensor left out of the sync",
        "rl_trainer/weights.py",
        "        for name, tensor in tensors.items()\n",
        "        for name, tensor in list(tensors.items())[1:]\n",
        f"{TRAINER}/test_train_storage.py::test_export_holds_every_tensor_once_in_the_engines_dtype",
    ),
    Mutation(
        "digest not compared",
        "rl_trainer/loop.py",
        "if received != digest:",
        "if False:",
        f"{TRAINER}/test_loop_run.py::test_a_sync_that_did_not_arrive_is_caught",
    ),
    Mutation(
        "canary not compared",
        "rl_trainer/loop.py",
        "if not gap <= limit:",
        "if False:",
        f"{TRAINER}/test_loop_run.py::test_a_sync_that_did_not_arrive_is_caught",
    ),
    Mutation(
        "canary says nothing of its difference",
        "rl_trainer/weights.py",
        "total = [abs(a - b) for left",
        "total = [0.0 * (a - b) for left",
        f"{TRAINER}/test_train_storage.py::test_canary_difference",
    ),
    Mutation(
        "no rehearsal of the sync",
        "rl_trainer/loop.py",
        "        self._rehearse(self.generation, first)\n",
        "",
        f"{TRAINER}/test_loop_run.py::test_a_tied_head_that_keeps_old_weights_is_caught_before_the_first_step",
    ),
    Mutation(
        "an update that changes nothing passes",
        "rl_trainer/loop.py",
        "if moved and digest == self._sent:",
        "if False:",
        f"{TRAINER}/test_loop_run.py::test_the_same_update_twice_is_caught_without_the_canary",
    ),
    Mutation(
        "weight versions not checked",
        "rl_trainer/generation.py",
        "if rollout.failure is None and segment.weight_version != version:",
        "if False:",
        f"{TRAINER}/test_loop_run.py::test_rollouts_of_other_weights_are_refused",
    ),
    Mutation(
        "seed without the attempt",
        "gym_servers/rollouts.py",
        "|{label}|{group}|{attempt}",
        "|{label}|{group}",
        f"{TRAINER}/test_loop_sampler.py::test_seeds_are_of_the_place_not_of_the_run",
    ),
    Mutation(
        "equal rows merge",
        "gym_servers/rows.py",
        "self._occurrences[plain] += 1",
        "self._occurrences[plain] = 0",
        f"{TRAINER}/test_loop_sampler.py::test_equal_rows_do_not_merge_and_equal_ids_are_refused",
    ),
    Mutation(
        "groups that have a spread are replaced",
        "rl_trainer/dynamic_sampling.py",
        "if spread.isdisjoint(tried):",
        "if True:",
        f"{TRAINER}/test_curriculum_run.py::test_places_are_filled_by_the_first_group_with_spread",
    ),
    Mutation(
        "dropped groups are trained on",
        "rl_trainer/loop.py",
        "rollouts = [rollout for rollout in sampled if not is_dropped(rollout)]",
        "rollouts = sampled",
        f"{TRAINER}/test_curriculum_run.py::test_dropped_groups_are_stored_counted_and_in_no_book",
    ),
    Mutation(
        "any improvement ends a plateau",
        "rl_trainer/replan.py",
        "max(scores[:-patience]) + min_improvement",
        "max(scores[:-patience])",
        f"{TRAINER}/test_curriculum_run.py::test_plateaus_by_hand",
    ),
    Mutation(
        "a step that is trained again is observed twice",
        "rl_trainer/observed.py",
        'if row["step"] < steps',
        'if row["step"] <= steps',
        f"{TRAINER}/test_curriculum_run.py::test_observed_pass_rates_by_hand",
    ),
    Mutation(
        "a profile counts the tokens of abandoned attempts",
        "rl_trainer/profiling.py",
        ' - rollout.usage.get("dropped_tokens", 0)',
        "",
        f"{TRAINER}/test_profiling.py::test_figures_of_a_task_by_hand",
    ),
    Mutation(
        "a finished task is sampled again",
        "rl_trainer/profiling.py",
        "if place < len(self._places) and self._places[place] >= 0:",
        "if False:",
        f"{TRAINER}/test_profiling.py::test_a_finished_task_is_never_sampled_again_and_the_parquet_is_that_of_an_undisturbed_profile",
    ),
    Mutation(
        "resume with other tasks of the same number",
        "rl_trainer/sampler.py",
        "if then == now:",
        'if then and now and then["n"] == now["n"]:',
        f"{TRAINER}/test_loop_sampler.py::test_a_resume_with_other_tasks_says_what_changed",
    ),
    Mutation(
        "progress display left on the terminal",
        "rl_trainer/progress.py",
        "refresh_per_second=4, transient=True",
        "refresh_per_second=4, transient=False",
        f"{TRAINER}/test_progress_terminal.py::test_the_display_is_updated_in_place_and_leaves_the_terminal_clean",
    ),
    Mutation(
        "a closed rollout opens a new ledger",
        "gym_servers/models/calls.py",
        "raise unavailable(f\"rollout '{rollout_id}' is closed",
        "unavailable(f\"rollout '{rollout_id}' is closed",
        "tests/gym_servers/models/test_model_server.py::test_a_late_call_to_a_closed_rollout_opens_no_ledger",
    ),
    Mutation(
        "carried tokens trained twice",
        "gym_servers/models/ledger.py",
        "segment.mask.extend([0] * added)",
        "segment.mask.extend([1] * added)",
        "tests/gym_servers/models/test_ledger_rules.py"
        "::test_a_later_turn_extends_the_sampled_ids_and_never_encodes_them_again",
    ),
    Mutation(
        "no fresh worker on the second try",
        "gym_servers/workers.py",
        "if not fresh and self._free:",
        "if self._free:",
        "tests/gym_servers/test_workers_limits.py::test_a_fresh_worker_has_served_no_call",
    ),
    Mutation(
        "bodies too deep to repeat are read",
        "gym_servers/base.py",
        'raise RowError("the body is nested deeper than 254 levels") from None',
        "pass",
        "tests/gym_servers/test_openapi.py::test_hostile_json_is_refused_or_graded",
    ),
    Mutation(
        "workers do not hear of folders",
        "gym_servers/workers.py",
        '"TMPDIR", PATH_VARIABLE)',
        '"TMPDIR")',
        "tests/gym_servers/test_environment_folders.py::test_a_server_and_its_workers_find_it",
    ),
    Mutation(
        "what was not asked is forgiven",
        "environments/workplace_assistant/verifier.py",
        "    if not missing and not unexpected:",
        "    if not missing:",
        "tests/environments/workplace_assistant/test_workplace_verdicts.py::test_the_perfect_agent_earns_all_the_silent_one_nothing_and_no_hack_anything",
    ),
    Mutation(
        "a call that was cut off counts as made",
        "environments/workplace_assistant/verifier.py",
        'return [item for item in calls if str(item.get("call_id")) in answered] if answered else calls',
        "return calls",
        "tests/environments/workplace_assistant/test_workplace_verdicts.py::test_the_perfect_agent_earns_all_the_silent_one_nothing_and_no_hack_anything",
    ),
    Mutation(
        "ids are given twice",
        "environments/workplace_assistant/state.py",
        "number = str(max(map(int, base), default=-1) + 1 + made)",
        "number = str(max(map(int, base), default=-1) + 1)",
        "tests/environments/workplace_assistant/test_workplace_verdicts.py::test_ids_of_what_was_made_and_removed_are_never_given_again",
    ),
    Mutation(
        "a session goes on over another database",
        "environments/workplace_assistant/state.py",
        "if self.base.digest != digest:",
        "if not digest:",
        "tests/environments/workplace_assistant/test_workplace_database.py::test_a_state_of_other_files_is_refused",
    ),
    Mutation(
        "an environment's step limit is not kept",
        "gym_servers/agents/tool_loop.py",
        "range(min(limits.steps, session.max_steps or limits.steps))",
        "range(limits.steps)",
        "tests/gym_servers/test_kit_tool_loop.py::test_the_environment_s_own_step_limit_is_kept_where_it_is_the_smaller",
    ),
    Mutation(
        "a replay believes the recorded outputs",
        "gym_servers/replay.py",
        "if one.output != one.recorded]",
        "if not one.name]",
        "tests/gym_servers/test_replay.py::test_a_tool_that_crashes_is_a_difference_and_not_the_end",
    ),
    Mutation(
        "a policy's text forges the judge's markers",
        "gym_servers/judges.py",
        'text.replace("<|", "< |")',
        "text",
        "tests/environments/judged/test_open_qa.py::test_an_answer_cannot_be_the_judge",
    ),
    Mutation(
        "questions to a judge without a bound",
        "gym_servers/judges.py",
        "asyncio.Semaphore(concurrency)",
        "asyncio.Semaphore(10**6)",
        "tests/gym_servers/test_judges.py::test_questions_beyond_the_bound_wait_and_their_wait_does_not_count",
    ),
    Mutation(
        "a rubric's NO items pass on YES",
        "environments/multi_challenge/verifier.py",
        "float(answer == item.pass_criteria)",
        'float(answer == "YES")',
        "tests/environments/judged/test_multi_challenge.py::test_every_item_is_judged_and_the_scores_become_a_reward",
    ),
    Mutation(
        "only one order is asked",
        "environments/open_qa/server.py",
        "pairs if self.settings.check_twice_swap else pairs[:1]",
        "pairs[:1]",
        "tests/environments/judged/test_open_qa.py::test_both_orders_must_say_equal_where_that_is_set",
    ),
    Mutation(
        "what is done before the identity check is not noted",
        "environments/banking/bank.py",
        "if customer_id not in self.verified:",
        "if False:",
        "tests/environments/banking/test_banking_verdicts.py::test_one_block",
    ),
    Mutation(
        "changes beyond those asked for are not counted",
        "environments/banking/verifier.py",
        "same and not missing and not extra and not violations",
        "same and not missing and not violations",
        "tests/environments/banking/test_banking_verdicts.py::test_one_block",
    ),
    Mutation(
        "a refusal is guessed before the identity check",
        "environments/banking/verifier.py",
        "if bank.decided_unseen and not want.decided_unseen:",
        "if False:",
        "tests/environments/banking/test_banking_verdicts.py::test_a_refusal_is_recorded_after_the_identity_check_where_the_policy_wants_one",
    ),
    Mutation(
        "code words may be guessed for ever",
        "environments/banking/desk.py",
        "if state.attempts >= MAX_ATTEMPTS:",
        "if False:",
        "tests/environments/banking/test_banking_verdicts.py::test_wrong_code_words_lock_the_conversation",
    ),
    Mutation(
        "calls that were never made are graded",
        "environments/banking/verifier.py",
        'if str(call.get("call_id")) in made and name in allowed',
        "if name in allowed",
        "tests/environments/banking/test_banking_verdicts.py::test_calls_without_outputs_and_tools_that_the_row_does_not_show_count_for_nothing",
    ),
    Mutation(
        "the user tells what is only mentioned",
        "environments/banking/user.py",
        "if facts := asked_for(asking):",
        "if facts := asked_for([text]):",
        "tests/environments/banking/test_banking_user.py::test_statements_and_other_questions_get_no_facts",
    ),
    Mutation(
        "a model that hangs up at once is a user",
        "environments/banking/simulated.py",
        "if (opening and done) or not (words or done):",
        "if not (words or done):",
        "tests/environments/banking/test_banking_user.py::test_what_a_model_may_say_as_a_user",
    ),
    Mutation(
        "the user is spoken to once too often",
        "gym_servers/agents/conversation.py",
        "if spoken >= session.max_turns or not await user_speaks():",
        "if spoken > session.max_turns or not await user_speaks():",
        "tests/gym_servers/test_conversation_agent.py::test_the_user_speaks_at_most_max_turns_times",
    ),
    Mutation(
        "a simulator's failure samples the episode anew",
        "gym_servers/agents/conversation.py",
        "raise final(error) from None",
        "raise",
        "tests/gym_servers/test_conversation_agent.py::test_a_user_that_fails_fails_the_rollout_and_nothing_is_sampled_again",
    ),
    Mutation(
        "the user hears reasoning",
        "gym_servers/agents/conversation.py",
        "(text := strip_reasoning(words_of(item))).strip()",
        "(text := words_of(item)).strip()",
        "tests/gym_servers/test_conversation_agent.py::test_the_user_hears_what_is_said_and_nothing_else",
    ),
    Mutation(
        "an ending tool does not end the conversation",
        "gym_servers/agents/tool_loop.py",
        "if any(result.name in session.ending_tools and not result.error for result in done):",
        "if False:",
        "tests/gym_servers/test_conversation_agent.py::test_an_ending_tool_ends_it_and_one_that_was_refused_does_not",
    ),
    Mutation(
        "the target's mean stands still",
        "curriculum/options.py",
        "* (step / max(1, self.steps - 1))",
        "* (0 / max(1, self.steps - 1))",
        f"{CURRICULUM}/test_plan.py::test_the_mean_falls_linearly_from_the_first_to_the_last_step",
    ),
    Mutation(
        "the mean never reaches its end",
        "curriculum/options.py",
        "(step / max(1, self.steps - 1))",
        "(step / max(1, self.steps))",
        f"{CURRICULUM}/test_plan.py::test_the_mean_falls_linearly_from_the_first_to_the_last_step",
    ),
    Mutation(
        "a Gaussian without the half",
        "curriculum/gaussian.py",
        "log: Shares = -0.5 * ((rates - mean) / sigma) ** 2",
        "log: Shares = -1.0 * ((rates - mean) / sigma) ** 2",
        f"{CURRICULUM}/test_gaussian.py::test_the_target_by_hand",
    ),
    Mutation(
        "densities that underflow",
        "curriculum/gaussian.py",
        "np.exp(log - log.max())",
        "np.exp(log)",
        f"{CURRICULUM}/test_gaussian.py::test_a_target_far_from_every_bin_is_the_nearest_one",
    ),
    Mutation(
        "pass rates rounded down to their bin",
        "curriculum/gaussian.py",
        "np.floor(pass_rate * n + 0.5)",
        "np.floor(pass_rate * n)",
        f"{CURRICULUM}/test_gaussian.py::test_pass_rates_go_to_the_nearest_bin_by_hand",
    ),
    Mutation(
        "empty bins keep their target",
        "curriculum/gaussian.py",
        "distance[:, empty] = np.inf",
        "distance[:, empty] += 0",
        f"{CURRICULUM}/test_gaussian.py::test_an_empty_bin_s_target_goes_to_the_nearest_by_hand",
    ),
    Mutation(
        "every epoch in one order",
        "curriculum/gaussian.py",
        "{rate:.9f}|{epoch}",
        "{rate:.9f}|0",
        f"{CURRICULUM}/test_gaussian.py::test_epochs_have_permutations_of_their_own",
    ),
    Mutation(
        "a dry bin is not noticed",
        "curriculum/gaussian.py",
        "np.any((self._left == 0) & (counts > 0))",
        "np.any((self._left < 0) & (counts > 0))",
        f"{CURRICULUM}/test_gaussian.py::test_a_bin_that_ran_dry_is_replaced_in_equal_parts_by_hand",
    ),
    Mutation(
        "a step without a task is not counted",
        "curriculum/gaussian.py",
        "self._rounding.settle(np.zeros_like(self._sizes))",
        "pass",
        f"{CURRICULUM}/test_gaussian.py::test_a_step_without_a_task_moves_nothing",
    ),
    Mutation(
        "bins by largest remainder of the step alone",
        "curriculum/rounding.py",
        "self._due = lag + np.cumsum(rest, axis=0)",
        "self._due = lag + rest",
        f"{CURRICULUM}/test_rounding.py::test_a_moving_gaussian_is_followed_within_one_task",
    ),
    Mutation(
        "windows that overlap are not urgent",
        "curriculum/rounding.py",
        "(2 * when + apart).tolist()",
        "(2 * when).tolist()",
        f"{CURRICULUM}/test_rounding.py::test_a_tie_goes_to_the_bin_whose_next_task_is_due_sooner_by_hand",
    ),
    Mutation(
        "solved tasks are kept",
        "curriculum/filter.py",
        "solved = profile.pass_rate >= 1.0",
        "solved = profile.pass_rate > 1.0",
        f"{CURRICULUM}/test_profile.py::test_the_filter_by_hand",
    ),
    Mutation(
        "the batch is not shuffled",
        "curriculum/plan.py",
        "return tasks[permutation(",
        "return tasks; _ = tasks[permutation(",
        f"{CURRICULUM}/test_plan.py::test_domains_are_shuffled_within_the_batch",
    ),
    Mutation(
        "replacements from the batch",
        "curriculum/plan.py",
        "free = ~np.isin(tasks, batch)",
        "free = np.isin(tasks, batch[:0], invert=True)",
        f"{CURRICULUM}/test_plan.py::test_replacements_are_a_second_stream",
    ),
    Mutation(
        "every attempt replaces alike",
        "curriculum/plan.py",
        "np.arange(attempt * count, (attempt + 1) * count)",
        "np.arange(count)",
        f"{CURRICULUM}/test_plan.py::test_replacements_are_a_second_stream",
    ),
    Mutation(
        "replacements ignore how many tasks a bin has",
        "curriculum/plan.py",
        "np.repeat(log_weights - np.log(sizes), sizes)",
        "np.repeat(log_weights, sizes)",
        f"{CURRICULUM}/test_plan.py::test_replacements_follow_the_step_s_target",
    ),
)


def mutated(text: str, mutation: Mutation) -> str:
    """`text` with the mutation in it. Raises ValueError where its old text does not stand there exactly once."""
    if text.count(mutation.old) != 1:
        raise ValueError(
            f"mutation '{mutation.name}': {mutation.old!r} stands {text.count(mutation.old)} times in {mutation.file}, "
            "not once: bring tests/mutations.py up to date"
        )
    return text.replace(mutation.old, mutation.new)


def passes(tree: Path, tests: list[str]) -> tuple[bool, str]:
    """Whether `tests` pass in `tree`, and the end of what pytest said. Raises RuntimeError where they could not be run."""
    variables = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--show-capture=no", *tests]
    done = subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest could not run {tests}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0, done.stdout[-2000:]


def main(names: list[str]) -> int:
    """Run them all, or those named; the exit status."""
    chosen = [mutation for mutation in MUTATIONS if not names or mutation.name in names]
    with tempfile.TemporaryDirectory(prefix="omnigym-mutations-") as folder:
        tree = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, tree / name)
        good, output = passes(tree, sorted({mutation.test for mutation in chosen}))
        if not good:
            print(f"the tests fail without any mutation:\n{output}")
            return 1
        survived = []
        for mutation in chosen:
            path, began = tree / mutation.file, time.monotonic()
            original = path.read_text()
            path.write_text(mutated(original, mutation))
            caught = not passes(tree, [mutation.test])[0]
            path.write_text(original)
            if not caught:
                survived.append(mutation.name)
            result = "caught" if caught else "SURVIVED"
            print(f"{result:9}{time.monotonic() - began:5.0f} s  {mutation.name:48}{mutation.test}", flush=True)
    print(f"{len(chosen) - len(survived)} of {len(chosen)} mutations are caught")
    return 1 if survived or not chosen else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
