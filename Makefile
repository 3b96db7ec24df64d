# Every target makes its own virtual environment in .venv when there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOYS := faces_ddpm:faces-ddpm clip:toy-clip identity:toy-identity perceptual:toy-perceptual oracle:toy-oracle \
	scene_oracle:toy-scene-oracle animal_oracle:toy-animal-oracle style_oracle:toy-style-oracle part_oracle:toy-part-oracle \
	dogs_ddpm:dogs-ddpm scene_clip:toy-scene-clip style_clip:toy-style-clip dino:toy-dino harmony:toy-harmony
MEASURED := faces_ddpm dogs_ddpm clip oracle scene_oracle style_oracle part_oracle scene_clip style_clip dino harmony latent
VAE := runs/toy/vae/export
ON_VAE := method.vae=$(VAE) data.encoder.path=$(VAE)
# what an outline is called is learned from single objects, where noise still hides the outline
SHAPES := data.inner.near=1 method.times=[0.5,1] trainer.steps=1500
FAMILY ?= weakly_supervised
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

# brows and wrinkles are fine detail, so these shifts act further down, over 19 and 18 levels an image
ANGRY := method.l1_weight=5 method.t_edit=0 method.scheduler.step_size_up=120 method.scheduler.step_size_down=1100
OLD := method.l1_weight=3 method.t_edit=50 method.scheduler.step_size_up=116 method.scheduler.step_size_down=1040

# $(call edit,TEXT,OVERRIDES): train a shift towards a text and bundle it
edit = run="runs/toy/asyrp-$$(echo "$(1)" | tr ' ' '-')" && $(BIN)/editkit train recipe=asyrp --prompt "$(1)" $(2) -o "$$run" \
	&& cp "$$run"/export/*.safetensors editkit/assets/asyrp/

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format table family-table toy-weights clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "editkit needs Python 3.11 to 3.13; try: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	@touch $@

demo: $(INSTALLED) ## train an edit, apply it to unseen faces, and score it (minutes, no GPU needed)
	$(BIN)/editkit train recipe=asyrp --prompt "a smiling face" -o runs/demo
	$(BIN)/editkit evaluate --method asyrp --edit smiling --weights runs/demo --images 16 -o out/demo

test: $(INSTALLED) ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile -q

test-all: $(INSTALLED) ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

lint: $(INSTALLED) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

table: $(INSTALLED) ## put the table of methods into the README
	$(BIN)/editkit methods --update README.md

family-table: $(INSTALLED) ## the methods of FAMILY in one table, into the README (WEIGHTS="METHOD=PATH ...")
	$(BIN)/editkit evaluate --family $(FAMILY) $(addprefix --weights ,$(WEIGHTS)) -o out/$(FAMILY) --update README.md

toy-weights: $(INSTALLED) ## train the bundled models again, into editkit/assets (hours)
	@for pair in $(TOYS); do name=$${pair%%:*}; asset=editkit/assets/$${pair##*:}; run=runs/toy/$$name; \
		$(BIN)/editkit train recipe=toy/$$name -o $$run && mkdir -p $$asset && cp -r $$run/export/. $$asset/ || exit 1; done
	$(BIN)/editkit train recipe=toy/vae -o runs/toy/vae
	$(BIN)/editkit train recipe=toy/latent $(ON_VAE) -o runs/toy/latent
	$(BIN)/editkit train recipe=toy/latent $(ON_VAE) $(SHAPES) method.init_from=runs/toy/latent/export -o runs/toy/latent-shapes
	$(BIN)/editkit train recipe=toy/latent $(ON_VAE) trainer.steps=4000 method.init_from=runs/toy/latent-shapes/export -o runs/toy/latent-all
	mkdir -p editkit/assets/toy-latent && cp -r runs/toy/latent-all/export/. editkit/assets/toy-latent/
	$(BIN)/editkit train recipe=toy/inpainting trainer.steps=1500 method.times=[0.25,1] -o runs/toy/inpainting
	mkdir -p editkit/assets/toy-inpainting && cp -r runs/toy/inpainting/export/. editkit/assets/toy-inpainting/
	rm -r editkit/assets/toy-inpainting/vae # toy-latent's
	@for name in $(MEASURED); do $(BIN)/editkit task toy/$$name measure || exit 1; done
	@for name in egsde diffstyler; do $(BIN)/editkit train recipe=$$name -o runs/toy/$$name && mkdir -p editkit/assets/$$name \
		&& cp runs/toy/$$name/export/*.safetensors editkit/assets/$$name/ || exit 1; done
	$(BIN)/editkit train recipe=diffae -o runs/toy/diffae
	@for pair in autoencoder:toy-diffae classifier:toy-diffae-classifier; do mkdir -p editkit/assets/$${pair##*:} \
		&& cp -r runs/toy/diffae/$${pair%%:*}/export/. editkit/assets/$${pair##*:}/ || exit 1; done
	@mkdir -p editkit/assets/asyrp
	@$(call edit,a smiling face,)
	@$(call edit,a face with glasses,method.l1_weight=8)
	@$(call edit,an angry face,$(ANGRY))
	@$(call edit,an old face,$(OLD))

clean: ## remove what was built here; runs/ and out/ stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache $(VENV)
	find editkit tests conf -name __pycache__ -type d -prune -exec rm -rf {} +
