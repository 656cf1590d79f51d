"""The composition root: from the config's `args` to the Ray Serve application."""

# No `from __future__ import annotations` here: Serve reads the type of `build`'s argument.

import os
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from autoscale.pool import Pool, PoolSettings
from autoscale.serve_policy import SlotPolicy
from gateway.deployment import Gateway, GatewaySettings
from headrace.config.args import Args, SlotClass
from replicas.slot import ModelServer, SlotSettings
from sharding.deployment import ShardStage, StageSettings

COMMON: dict[str, Any] = {
    "health_check_period_s": 0.5,
    "health_check_timeout_s": 10.0,
    # Serve's wait for its own requests would only cost time: it knows nothing of those on the link.
    "graceful_shutdown_wait_loop_s": 0.1,
    "max_ongoing_requests": 10_000,
    # Serve would log each of the pool's calls; our own lines go to stderr as JSON.
    "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
}


def build(args: Args) -> serve.Application:
    """Gateway → (Pool, one ModelServer deployment per slot class), as `serve run` calls it."""
    pool = _pool(args)
    slots = [_slots(args, name, pool) for name, each in args.slots.items() if each.max]
    stage = _stage(args, pool, slots) if args.media.enabled else None
    return _gateways(args, pool, slots, stage)


def _pool(args: Args) -> serve.Application:
    settings = PoolSettings(
        store=args.store,
        poll_s=args.repository.poll_s,
        slots=args.slots,
        secret=args.secret,
        link=args.link,
        max_body_bytes=args.limits.max_body_bytes,
        budgets=args.budgets,
        max_callers=args.limits.max_callers,
        max_concurrent_loads=args.limits.max_concurrent_loads,
        log_level=args.log_level,
    )
    deployment = serve.deployment(
        Pool,
        name="Pool",
        num_replicas=1,
        graceful_shutdown_timeout_s=5.0,
        ray_actor_options={"num_cpus": 0},
        **COMMON,
    )
    return deployment.bind(settings)


def _slots(args: Args, name: str, pool: serve.Application) -> serve.Application:
    slot_class = args.slots[name]
    settings = SlotSettings(
        name=name,
        slot_class=slot_class,
        store=args.store,
        listen=args.listen.link,
        link=args.link,
        secret=args.secret,
        limits=args.limits,
        log_level=args.log_level,
        spool=args.media.spool,
    )
    deployment = serve.deployment(
        ModelServer,
        name=f"Slot-{name}",
        autoscaling_config=slot_scaling(name, slot_class),
        graceful_shutdown_timeout_s=args.limits.drain_s + 5,
        ray_actor_options={
            "num_cpus": slot_class.cpus,
            "num_gpus": slot_class.gpus,
            "resources": dict(slot_class.resources),
        },
        **COMMON,
    )
    return deployment.bind(settings, pool)


def slot_scaling(name: str, slot_class: SlotClass) -> AutoscalingConfig:
    """Serve's bounds of a slot class; the pool says how many there are, without a delay.

    Without `initial_replicas` an update of the application keeps the number that is there.
    """
    policy = AutoscalingPolicy(policy_function=SlotPolicy, policy_kwargs={"slot_class": name})
    return AutoscalingConfig(
        min_replicas=slot_class.least,
        max_replicas=slot_class.max,
        upscale_delay_s=0,
        downscale_delay_s=0,
        downscale_to_zero_delay_s=0,
        policy=policy,
    )


def _stage(
    args: Args, pool: serve.Application, slots: list[serve.Application]
) -> serve.Application:
    settings = StageSettings(
        media=args.media,
        secret=args.secret,
        link=args.link,
        max_body_bytes=args.limits.max_body_bytes,
        log_level=args.log_level,
    )
    deployment = serve.deployment(
        ShardStage,
        name="ShardStage",
        num_replicas=args.media.replicas,
        graceful_shutdown_timeout_s=args.limits.drain_s + 5,
        ray_actor_options={"num_cpus": args.media.cpus},
        **COMMON,
    )
    return deployment.bind(settings, pool, *slots)


def _gateways(
    args: Args,
    pool: serve.Application,
    slots: list[serve.Application],
    stage: serve.Application | None,
) -> serve.Application:
    settings = GatewaySettings(
        listen=args.listen,
        limits=args.limits,
        secret=args.secret,
        link=args.link,
        admin_token=args.admin_token,
        repository_control=args.repository.control,
        cors=args.cors,
        budgets=args.budgets,
        audit=args.audit,
        media=args.media,
        shared_memory=args.shared_memory,
        log_level=args.log_level,
    )
    automatic = min(8, max(1, (os.cpu_count() or 1) // 4))
    deployment = serve.deployment(
        Gateway,
        name="Gateway",
        num_replicas=automatic if args.gateways == "auto" else args.gateways,
        graceful_shutdown_timeout_s=args.limits.drain_s + 5,
        # New gateways share the ports with the old ones before those leave.
        max_surge_percent=100,
        rolling_update_percentage=1.0,
        ray_actor_options={"num_cpus": 0},
        **COMMON,
    )
    return deployment.bind(settings, pool, stage, *slots)
