"""What a run learns while it works, and the record made of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

from alignbench import record
from alignbench.config.plan import Job, Plan, starting_weights
from alignbench.distributed import is_first
from alignbench.record import (
    Change,
    DataInfo,
    MethodInfo,
    ModelInfo,
    RecipeInfo,
    Result,
    RunRecord,
    TrainInfo,
    Trend,
)
from alignbench.runs import environment
from alignbench.training.totals import Totals
from alignbench.training.trends import trends


@dataclass
class RunRecorder:
    """Everything that goes into `run.json` and is not in the plan."""

    job: Job
    started: str
    weights: dict[str, str]
    """{role: digest} of the files the run starts from."""
    data: DataInfo | None = None
    trainable: int = 0
    totals: Totals | None = None
    exports: dict[str, str] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)

    @classmethod
    def begin(cls, job: Job, before: RunRecord | None) -> RunRecorder:
        """Note the time and hash the weights; a continued run keeps the time of its first start."""
        return cls(job, before.started if before else record.now(), starting_weights(job.plan))

    def write(self, status: Literal["partial", "failed"]) -> None:
        """Write `run.json`, on the first rank."""
        if is_first():
            record.write(self.build(status), self.job.out)

    def build(self, status: Literal["complete", "partial", "failed"]) -> RunRecord:
        job, plan, config = self.job, self.job.plan, self.job.plan.config
        method = recipe = None
        if plan.method is not None and config.method is not None:
            options = dict(config.section("method"))
            method = MethodInfo(name=config.method, title=plan.method.title, options=options)
        if config.recipe is not None:
            recipe = RecipeInfo(name=config.recipe, source=job.registry.recipe(config.recipe).source)
        return RunRecord(
            schema=1,
            status=status,
            id=plan.id,
            kind="method" if plan.method else "base",
            command=job.command,
            method=method,
            model=ModelInfo(
                name=config.model,
                title=plan.model.title,
                parameters=plan.model.policy.parameters,
                trainable_parameters=self.trainable,
                weights=self.weights,
                random_weights=plan.random_weights,
            ),
            recipe=recipe,
            changed={k: Change(value=o.value, origin=o.source) for k, o in config.changed().items()},
            data=self.data,
            leaderboard=job.registry.dataset(config.dataset).leaderboard and not plan.random_weights,
            train=self._train_info(plan),
            exports=self.exports,
            results=self.results,
            environment=environment.describe(),
            started=self.started,
            finished=record.now() if status == "complete" else None,
            config=config.as_dict(),
            plugins=list(plan.plugins),
        )

    def _train_info(self, plan: Plan) -> TrainInfo | None:
        if plan.method is None or self.totals is None:
            return None
        train, totals = plan.config.train, self.totals
        return TrainInfo(
            seed=plan.config.seed,
            steps=train.steps,
            images_per_step=train.images_per_step,
            micro_batch=train.micro_batch,
            world_size=plan.world_size,
            device=environment.device_name(),
            precision=train.precision,
            optimizer={
                "name": "AdamW",
                "lr": train.lr,
                "betas": [train.beta1, train.beta2],
                "eps": train.eps,
                "weight_decay": train.weight_decay,
                "grad_clip": train.grad_clip,
                "schedule": train.schedule,
                "warmup_steps": train.warmup_steps,
            },
            optimizer_steps=train.steps * train.updates_per_collect,
            trends={k: Trend(**v) for k, v in trends(self.job.out / "metrics.jsonl").items()},
            **asdict(totals),
        )
