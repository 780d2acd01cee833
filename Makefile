# make all      the book on nano: every chapter, every figure     (PROFILE=name or PROFILE=path/to/my.toml)
# make test     the tests, every chapter on `smoke` among them
# make smoke    the book on smoke                make lab      JupyterLab on the chapters
# make plan     what a profile needs             make figures  redraw from tables on disk
# make bench    ours beside the published procedure and other trainers
# make cluster-test   the same jobs on two local workers of ray
# make lab-test the dial in a real JupyterLab, in a Chromium
# make base     remake the organism's weights    make clean    remove what was built
PROFILE ?= nano

# A profile's name goes into rules and into the shell, so it holds nothing that means something there.
ODD := $(strip $(foreach c,$$ " ' ` \ ; & | < > ( ) * ? [ ] { } ! ~ % : = \#,$(findstring $(c),$(value PROFILE))))
ifneq ($(ODD)$(word 2,$(value PROFILE)),)
$(error PROFILE=$(value PROFILE): spaces and signs like $$ : % or quotes do not do here; give a name, or a path without them)
endif
NAME := $(basename $(notdir $(PROFILE)))
TOML := $(if $(filter %.toml,$(PROFILE)),$(PROFILE),lib/profiles/$(PROFILE).toml)
BUILD := build/$(NAME)
PYTHON := .venv/bin/python
NOTEBOOKS := $(sort $(wildcard notebooks/[0-9]*.ipynb))

# Which study a chapter belongs to stands in its own metadata, as `"study": "tool"`; chapters of a study without a table in
# the profile are left out, those of several studies where all are.
says = $(shell sed -n 's/^  *"$(1)": "\([0-9a-z_ ]*\)".*/\1/p' '$(2)')
TABLES := $(shell sed -n 's/^ *\[*"*\([a-z_]*\).*/\1/p' '$(TOML)' 2> /dev/null)
CHAPTERS := $(foreach n,$(NOTEBOOKS),$(if $(filter $(or $(call says,study,$(n)),any),any $(TABLES)),$(n:notebooks/%=$(BUILD)/%)))
LONGEST := $(patsubst %,$(BUILD)/%.ipynb,19_untangling 14_sae_variants 09b_seeds 08_controls 07_how_measurement_misleads 06_exp2b_dose)# what takes long is begun first
WITHOUT := $(filter-out $(TABLES),$(sort $(foreach n,$(NOTEBOOKS),$(call says,study,$(n)))))

# Chapters that wait for the same ones run side by side, each with its share of the cores: with a small model two chapters of
# a core each take less time than one after the other with two. A GPU's memory is one chapter's; ray has workers of its own.
JOBS ?= $(if $(or $(wildcard /dev/nvidia0),$(filter ray,$(ENGINE))),1,2)
ifeq ($(filter-out all,$(or $(MAKECMDGOALS),all))$(findstring -j,$(MAKEFLAGS)),)
MAKEFLAGS += -j$(JOBS)
endif
SPACE := $(subst ,, )
after = <$(subst $(SPACE),+,$(call says,after,$(1)))>
AFTER := $(foreach n,$(CHAPTERS:$(BUILD)/%=notebooks/%),$(call after,$(n)))
SHARE = env $(KEEPING:%=-u %) OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$(( ($$(nproc) + $(JOBS) - 1) / $(JOBS) ))}
share = $(if $(filter-out 1,$(JOBS)),$(if $(word 2,$(filter $(call after,$(1)),$(AFTER))),$(SHARE)))

# idle threads spin only briefly, and beside other work lib.run lets none spin
export GOMP_SPINCOUNT = 10000
# glibc keeps freed memory, in large pages, instead of asking the system for zeroed pages at each large tensor; chapters side
# by side give it back, for each would keep ten times what it uses
KEEPING := MALLOC_MMAP_MAX_ MALLOC_TRIM_THRESHOLD_ MALLOC_TOP_PAD_
export MALLOC_MMAP_MAX_ = 0
export MALLOC_TRIM_THRESHOLD_ = 4294967296
export MALLOC_TOP_PAD_ = 268435456
export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
export TOKENIZERS_PARALLELISM = false
export PYTHONUTF8 = 1
# containers often forbid Python to keep what it compiled; every process would then compile all its libraries again
unexport PYTHONDONTWRITEBYTECODE
export PYTHONWARNINGS = ignore::FutureWarning

ifeq ($(wildcard $(TOML)),)
$(error $(PROFILE): no such profile; use one of $(basename $(notdir $(wildcard lib/profiles/*.toml))), or the path of a .toml file)
endif

.PHONY: all test cluster-test lab-test smoke lab plan figures bench base clean FORCE
.DELETE_ON_ERROR:
.PRECIOUS: $(BUILD)/needs/%

all: $(filter $(CHAPTERS),$(LONGEST)) $(CHAPTERS)
	@$(PYTHON) -m lib.book.plots
	@for study in $(WITHOUT); do echo "Chapters about [$$study] are left out: $(TOML) has no such table."; done
	@echo "The book: $(BUILD)/*.html. Figures: figures/$(NAME)/. Tables: data/$(NAME)/results/."

# A .venv is made anew where its interpreter is gone or has become another, as after an upgrade of the system.
ifneq ($(shell cat .venv/installed 2> /dev/null),$(shell .venv/bin/python -V 2> /dev/null))
.venv/installed: FORCE
endif
.venv/installed: requirements.txt
	@python3 -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or later is needed; python3 is %d.%d here' % sys.version_info[:2])"
	test "$$(.venv/bin/python -V 2> /dev/null)" = "$$(python3 -V)" || python3 -m venv --clear .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	$(PYTHON) -c "import os, sysconfig; site = sysconfig.get_path('purelib'); print(os.path.relpath('.', site), file=open(site + '/book.pth', 'w'))"
	mkdir -p .venv/etc/ipython && echo "c.IPKernelApp.log_level = 'CRITICAL'" > .venv/etc/ipython/ipython_kernel_config.py
	$(PYTHON) -m ipykernel install --sys-prefix --name delta-transcoders --display-name "Delta transcoders" --env PYTHONPATH "$$PWD" --env PYTHONUTF8 1 > /dev/null
	$(PYTHON) -V > $@

# `make all ENGINE=ray`, with RAY_ADDRESS for a cluster that runs already: see lib/book/compute.py
WORKERS := $(if $(filter ray,$(ENGINE)),.venv/ray)
.venv/ray: .venv/installed
	.venv/bin/pip install --quiet --disable-pip-version-check $$(sed -n 's/^# \(ray==[0-9.]*\).*/\1/p' requirements.txt)
	touch $@

# The organism comes with the project, or is made here where it does not.
$(BUILD)/base: | .venv/installed
	@mkdir -p $(BUILD)
	@$(PYTHON) -m lib.base.make --profile $(PROFILE)
	@touch $@

# What a chapter is made from besides the chapters before it stands in a file that changes when that does (lib/needs.py):
# looked after as make begins, and made by a rule where nothing is there yet.
ifeq ($(filter test lab clean plan base smoke cluster-test lab-test .venv/installed,$(MAKECMDGOALS)),)
ifneq ($(wildcard .venv/installed),)
ifneq ($(wildcard $(BUILD)/base),)
WRONG := $(shell $(PYTHON) -m lib.needs --profile '$(PROFILE)' 2>&1)
ifneq ($(WRONG),)
$(error $(WRONG))
endif
endif
endif
endif
$(BUILD)/needs.made: | $(BUILD)/base
	@$(PYTHON) -m lib.needs --profile $(PROFILE)
	@touch $@
$(BUILD)/needs/%: | $(BUILD)/needs.made ;

$(BUILD)/%.ipynb: notebooks/%.ipynb $(BUILD)/needs/% | .venv/installed $(BUILD)/base $(WORKERS)
	@$(call share,$<) $(PYTHON) -m lib.run $< --profile $(PROFILE)

# Which chapter works on the results of which stands in its own metadata, as `"after": "01_prompts 02_finetune_lora"`; those
# of a study that is left out are not waited for.
$(foreach n,$(NOTEBOOKS),$(eval $(n:notebooks/%=$(BUILD)/%): $(filter $(CHAPTERS),$(patsubst %,$(BUILD)/%.ipynb,$(call says,after,$(n))))))

test: export OMP_NUM_THREADS = 1
test: .venv/installed
	$(PYTHON) -m pytest -q -n auto --dist loadfile --no-loadscope-reorder --ignore lib/tests/test_cluster.py --ignore lib/tests/test_lab.py lib/tests

cluster-test: .venv/ray
	@$(MAKE) PROFILE=smoke build/smoke/03_delta_transcoders.ipynb
	$(PYTHON) -m pytest -q lib/tests/test_cluster.py

# the dial in a real JupyterLab, in a Chromium if there is one
lab-test: .venv/installed
	$(PYTHON) -m pytest -q lib/tests/test_lab.py

smoke:
	@$(MAKE) all PROFILE=smoke

# It opens copies, which git does not see: what readers run and change there is theirs, and stays when the sources change.
lab: .venv/installed
	@mkdir -p notebooks/working
	@for source in notebooks/*.ipynb; do test -e "notebooks/working/$${source##*/}" || cp "$$source" notebooks/working; done
	@echo "The chapters to work on are in notebooks/working; remove a copy to have it fresh next time."
	@test "$$(id -u)" != 0 || echo "This runs as root, as containers do: whoever reaches the port is root too."
	.venv/bin/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/working

plan: .venv/installed
	@$(PYTHON) -m lib.plan --profile $(PROFILE)

figures: .venv/installed
	@for chapter in $(CHAPTERS:$(BUILD)/%=notebooks/%); do \
	  $(PYTHON) -m lib.run $$chapter --profile $(PROFILE) --redraw || exit 1; done

base: .venv/installed
	$(PYTHON) -m lib.base.make --profile $(PROFILE) --again

# the other trainers are there (sae-lens) or installed now, sae-dashboard in an environment of its own; without a network the
# bench goes on and says which one it lacks
bench: $(BUILD)/03_delta_transcoders.ipynb
	-@.venv/bin/pip install --quiet --disable-pip-version-check $$($(PYTHON) -c "from lib.bench.trainers import SPARSIFY; print(SPARSIFY)")
	-@test -x .venv/dashboard/bin/python || $(PYTHON) -m lib.bench.browsing
	@TQDM_DISABLE=1 $(PYTHON) -m lib.bench --profile $(PROFILE) $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf build
