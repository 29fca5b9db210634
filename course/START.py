# %% [markdown]
# # Start here
#
# This page takes ten minutes. It shows how to run a cell, how a check answers, where your work is
# kept, and which lessons there are.
#
# ## 1 · Run a cell
#
# A notebook is made of cells: text like this one, and grey cells with Python. Click into the grey cell
# below, then press **Shift+Enter**. While it runs, `[*]` stands next to it; when it is done, a number.
# The first time takes some seconds.

# %%
import vaelab

print("It works. Go on with section 2.")

# %% [markdown]
# In a lesson, run the cells from top to bottom. If something behaves strangely, choose *Kernel*, then
# *Restart Kernel*, and run the cells again from the top. You cannot break anything.
#
# ## 2 · Answer an exercise
#
# In a table of counts, each row is a cell and each column is a gene. Which share of the entries is
# zero? The answer below has a mistake on purpose. Run the next two cells, and read what the check says.
# Then correct the answer, and run both cells again.


# %% tags=["practice"]
def share_of_zeros(counts):
    """The share of the entries of a table that are zero, a number between 0 and 1."""
    return (counts == 0).sum() / len(counts)


# %%
vaelab.check("00.1", share_of_zeros)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `counts.size` is the number of entries of an array.</details>
#
# | the box begins with | it means |
# |---|---|
# | ✔ | Right. The box says what was verified, and shows the model solution if yours differs. |
# | ✘ | Not right yet. The box has the hint for a known mistake, or the smallest input for which your answer differs. |
# | ○ | Still to be done. You may go on: only cells that use this answer stop. |
#
# A red line below the box, and a red triangle in the contents on the left, repeat ✘ or ○. Nothing is
# broken.
#
# **Solutions.** Try first; then open the folded hint under the task. The model solution opens after the
# check has passed. To see it before, run `vaelab.solution("02.1")` twice.
#
# **Predict first.** Before a surprise, a lesson asks what you expect. Say your answer, even a wrong
# one, and only then open the folded text.
#
# ## 3 · Where your work is kept
#
# All your notebooks are in the folder `my-course` on your machine; the folder icon on the left lists
# them. JupyterLab saves every two minutes, and Ctrl+S saves now.
#
# - To go on another day, give the command that opened this page again. It never writes over your work.
# - To begin a lesson again, rename your notebook. The command then brings a fresh one.
# - `vaelab course --update` brings new versions of the lessons. If you have written into a lesson, its
#   new version is put next to yours.
#
# Commands that begin with `vaelab` are for JupyterLab's terminal: *File*, *New*, *Terminal*. In your own
# terminal, write `.venv/bin/vaelab`, in the folder of the course (on Windows `.venv\Scripts\vaelab`).
#
# ## 4 · The lessons
#
# <!-- lessons -->
#
# ## 5 · Three paths
#
# <!-- paths -->
#
# ## 6 · What you have done
#
# Run the next cell at any time, or give the command `vaelab progress`. It reads a small file in
# `my-course`, into which the checks of the lessons write. The file never leaves your machine.

# %%
from vaelab.teaching import progress

progress.page()

# %% [markdown]
# If something does not work, give the command `vaelab doctor`. It looks at Python, PyTorch, memory, data
# and the kernel, and says what to do.
#
# **Next:** open the first lesson of your path, in section 5.
